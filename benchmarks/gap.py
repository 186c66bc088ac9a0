"""What distillation is worth at every size: `python -m benchmarks.gap amazon-beauty --log LOG`.

Students of at most 5, 10, 25 and 50 % of the teacher's bytes and of its width, alone and distilled:
the same shape, epochs and learning rate, the better of the same dropouts on validation, both stored
in eight bits where the teacher has its 32. The gap that is closed is (distilled - alone) /
(teacher - alone), of means over the seeds, NDCG@10 on test. Rows go to benchmarks/results/gap.json;
`--readme` draws benchmarks/results/gap-<dataset>.png and writes the table between the markers
`gap-<dataset>` of the README.
"""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import students
from benchmarks.command import command
from benchmarks.rows import RESULTS, Results, Row, Subject, table, values_of
from benchmarks.variants import RUNS, preset_name, spread
from jobs.presets import PRESETS
from recsys.compress.graph import serving_graph
from recsys.data.sequences import Dataset
from recsys.evaluate.report import readable_bytes
from recsys.files import read_json
from recsys.models import StudentConfig, build, load_model
from recsys.models.transformer import TransformerConfig
from recsys.search.space import shaped

BENCHMARK = "gap"
EXPANSION = 2
PRECISION = "int8"
WIDTHS = (*range(4, 64, 2), *range(64, 513, 8))
METRIC = "ndcg@10"
STUDENT, ALONE = "student", "student-alone"
COLORS = {"distilled": "#1f5fbf", "alone": "#9aa5b1", "teacher": "#b3261e"}


@dataclass(frozen=True, kw_only=True)
class Options(students.Options):
    """Which sizes to measure."""

    shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)
    """Sizes of students, as shares of the teacher's."""
    dropouts: tuple[float, ...] = (0.1, 0.3)
    """What both may choose from, on validation: a student alone may need some where a distilled one
    needs none."""


def measure(results: Results, options: Options) -> None:
    """Trains and measures what is not measured yet; seed after seed, so that all get one first."""
    made = students.material(options)
    num_rows, teacher = Dataset.open(made.dataset).num_items_with_padding, made.report
    widest = load_model(made.teacher).config.width
    preset = preset_name(options.dataset)
    shapes = {
        shape_flags(largest(PRESETS[preset].student, num_rows, limit, widest)): share
        for share in sorted(options.shares, reverse=True)  # of the same shape the smallest
        for limit in [share * teacher["size_bytes"]]
    }
    for seed in options.seeds:
        for shape, share in sorted(shapes.items(), key=lambda item: item[1]):
            choices = [
                students.student_words(options, (*shape, "--model.dropout", f"{dropout:g}"), seed)
                for dropout in options.dropouts
            ]
            compression = [preset, "--recipe", PRECISION]
            lines = [["jobs.distill", *words, "--alone", ALONE] for words in choices]
            lines.append(["jobs.compress", *compression])
            line = " && ".join(shlex.join(["python", "-m", *words]) for words in lines)
            subject = Subject(options.dataset, "recsys", f"size={share:.0%}", seed)
            if results.has(subject, line):
                continue
            directory = RUNS / options.dataset / BENCHMARK / f"{share:.0%}" / str(seed)
            homes = [directory / f"dropout={dropout:g}" for dropout in options.dropouts]
            for words, home in zip(choices, homes, strict=True):
                students.distill(words, made, home / STUDENT, home / ALONE)
            distilled, alone = (
                students.compress(
                    compression,
                    made,
                    better([home / name for home in homes]),
                    directory / f"small-{name}",
                )
                for name in (STUDENT, ALONE)
            )
            results.put(subject, line, _values(distilled, alone, teacher))


def better(models: Sequence[Path]) -> Path:
    """Returns the model directory that is best on validation."""
    return max(models, key=lambda model: read_json(model / "report.json")["validation"][METRIC])


def _values(
    distilled: Mapping[str, Any], alone: Mapping[str, Any], teacher: Mapping[str, Any]
) -> dict[str, tuple[float, str]]:
    """Returns value and unit of what is kept of three reports."""
    values = students.cost_and_accuracy(distilled)
    del values["train_seconds"]  # of the compression
    values |= {
        f"alone_{METRIC}": (alone[METRIC], ""),
        f"teacher_{METRIC}": (teacher[METRIC], ""),
    }
    closed = gap_closed(distilled[METRIC], alone[METRIC], teacher[METRIC])
    return {**values, "gap_closed": (closed, "")} if math.isfinite(closed) else values


def largest(student: StudentConfig, num_rows: int, limit: float, widest: int) -> StudentConfig:
    """Returns the widest student whose serving graph has at most `limit` bytes.

    Args:
        widest: its width at most.

    Raises:
        ValueError: the narrowest has more.
    """
    best = None
    for width in WIDTHS:
        config = shaped(student, width, student.num_layers, EXPANSION)
        weights = {k: w.numpy() for k, w in build(config, num_rows).state_dict().items()}
        if width > widest or serving_graph(config, weights, PRECISION).ByteSize() > limit:
            break
        best = config
    if best is None:
        raise ValueError(f"no student has at most {readable_bytes(round(limit))}")
    return best


def shape_flags(config: StudentConfig) -> tuple[str, ...]:
    """Returns the flags of `jobs.distill` that ask for a shape."""
    names = ["width", "num_layers"]
    if isinstance(config, TransformerConfig):
        names += ["num_heads", "head_width", "feed_forward_width"]
    else:
        names += ["hidden_width"]
    flags = [(f"--model.{name.replace('_', '-')}", str(getattr(config, name))) for name in names]
    return tuple(word for flag in flags for word in flag)


def gap_closed(distilled: float, alone: float, teacher: float) -> float:
    """Returns (distilled - alone) / (teacher - alone); infinite where there is no gap."""
    gap = teacher - alone
    return (distilled - alone) / gap if gap > 0 else float("inf")


def markdown(rows: Sequence[Row]) -> str:
    """Draws the picture and returns means over the seeds, the share of the gap between them that is
    closed, and a link to it."""
    draw(rows)
    lines = []
    for name in _sizes(rows):
        distilled, alone, teacher, size = (
            values_of(rows, metric, variant=name)
            for metric in (METRIC, f"alone_{METRIC}", f"teacher_{METRIC}", "size_bytes")
        )
        closed = gap_closed(*(statistics.mean(values) for values in (distilled, alone, teacher)))
        cells = [spread(alone), spread(distilled), spread(teacher[:1]), f"{closed:.0%}"]
        size_cell = readable_bytes(round(statistics.mean(size)))
        lines.append([name.removeprefix("size="), size_cell, *cells, f"{len(distilled)}"])
    head = ["size", "bytes", "alone", "distilled", "teacher", "of the gap", "seeds"]
    return f"{table(head, lines)}\n\n![size and accuracy](results/{_picture(rows)})"


def _sizes(rows: Sequence[Row]) -> list[str]:
    """Returns the names of what was measured, smallest first."""
    return sorted({row.variant for row in rows}, key=lambda name: int(name[len("size=") : -1]))


def _picture(rows: Sequence[Row]) -> str:
    return f"{BENCHMARK}-{rows[0].dataset}.png"


def draw(rows: Sequence[Row]) -> None:
    """Draws accuracy against size, alone, distilled and the teacher's, of one data set."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = _sizes(rows)
    sizes = [statistics.mean(values_of(rows, "size_bytes", variant=name)) / 1024 for name in names]
    for label, metric in (("distilled", METRIC), ("alone", f"alone_{METRIC}")):
        means = [statistics.mean(values_of(rows, metric, variant=name)) for name in names]
        axes.plot(sizes, means, marker="o", color=COLORS[label], label=label)
    teacher = statistics.mean(values_of(rows, f"teacher_{METRIC}"))
    axes.axhline(teacher, color=COLORS["teacher"], linestyle=":", label="teacher")
    axes.set_xscale("log")
    axes.minorticks_off()
    shares = [name.removeprefix("size=") for name in names]
    axes.set_xticks(
        sizes, [f"{share}\n{s:,.0f} KiB" for share, s in zip(shares, sizes, strict=True)]
    )
    axes.set_xlabel("size, of the teacher's")
    axes.set_ylabel("NDCG@10 on test")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / _picture(rows), dpi=130)


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
