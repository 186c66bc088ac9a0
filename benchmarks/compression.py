"""What each way to compress brings: `python -m benchmarks.compression movielens-1m --log LOG`.

The preset's student, compressed by each method alone and by several together, without and with
recovery from the teacher's answers. Bytes of the graph, milliseconds from history to top 10 at
batch 1 on one thread, NDCG@10 on test. Rows go to benchmarks/results/compression.json; `--readme`
writes the table between the markers `compression-<dataset>` of the README.
"""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import students
from benchmarks.command import command
from benchmarks.rows import Results, Row, Subject, table, values_of
from benchmarks.variants import RUNS, preset_name, spread
from jobs.presets import PRESETS
from jobs.recipes import NAMED
from recsys.evaluate.report import readable_bytes
from recsys.files import read_json
from recsys.models import load_model
from recsys.models.transformer import TransformerConfig

BENCHMARK = "compression"
STUDENT = "the student"
METRIC = "ndcg@10"
RECOVERED = "+2"
"""Epochs of recovery, as a step of a recipe has them."""


@dataclass(frozen=True, kw_only=True)
class Options(students.Options):
    """What to compress."""

    student: Path | None = None
    """The student's model directory; none to distil that of the preset."""
    targets: Path | None = None
    """The teacher's answers that the student learnt from, which recovery needs; none to ask."""
    only: tuple[str, ...] = ()
    """Recipes, their steps with spaces between them; none for all."""


def recipes(model: TransformerConfig) -> list[str]:
    """Returns each method alone, then several together, in sizes that fit the model."""
    width, heads, hidden = model.width, model.num_heads, model.feed_forward_width
    structural = [
        *([f"prune-layers={model.num_layers // 2}"] if model.num_layers > 1 else []),
        *([f"prune-heads={heads // 2}"] if heads > 1 else []),
        f"prune-feed-forward={hidden // 2}",
        f"prune-width={width * 3 // 4}",
        f"factorize-linears={width // 4}",
        f"factorize-items={width // 2}",
        f"codebook-items={width // 4}",
        f"codebook-items={width // 2}",
        f"prune-length={model.max_length // 4}",
    ]
    heads_kept = f"prune-heads={heads // 2} " if heads > 1 else ""
    smaller = f"{heads_kept}prune-feed-forward={hidden // 2}{RECOVERED}"
    return [
        "fp16",
        "int8",
        "int4",
        *structural,
        *(f"{step}{RECOVERED}" for step in ("int4", *structural)),
        f"{smaller} int8",
        f"prune-width={width * 3 // 4}{RECOVERED} int8",
        f"factorize-items={width // 2}{RECOVERED} int8",
        f"codebook-items={width // 4}{RECOVERED} int8",
        f"codebook-items={width // 2}{RECOVERED} int8",
        f"{smaller} codebook-items={width // 4}{RECOVERED} int8",
        f"{smaller} int4{RECOVERED}",
        *NAMED,
    ]


def measure(results: Results, options: Options) -> None:
    """Compresses one student of each seed, unless that is done."""
    made = students.material(options)
    if options.targets is not None:
        made = replace(made, targets=options.targets)
    for seed in options.seeds:
        directory = RUNS / options.dataset / BENCHMARK / str(seed)
        student = options.student or directory / "student"
        # A teacher that is asked live is asked for what the preset's loss reads, and no more.
        live = PRESETS[preset_name(options.dataset)].live
        words = options.words((), seed) if live else students.student_words(options, (), seed)
        if options.student is None:
            students.distill(words, made, student)
        subject = Subject(options.dataset, "recsys", STUDENT, seed)
        line = shlex.join(["python", "-m", "jobs.distill", *words])
        if not results.has(subject, line):
            results.put(subject, line, values(read_json(student / "report.json")))
        model = load_model(student).config
        if not isinstance(model, TransformerConfig):
            raise ValueError(f"{student} is no transformer, which these recipes are for")
        for recipe in options.only or recipes(model):
            subject = subject._replace(variant=recipe)
            flags = ("--recipe", *recipe.split())
            words = options.words(flags, seed)
            line = shlex.join(["python", "-m", "jobs.compress", *words])
            if results.has(subject, line):
                continue
            output = directory / recipe.replace(" ", ",")
            results.put(subject, line, values(students.compress(words, made, student, output)))


def values(report: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Returns value and unit of what is kept of a model's report."""
    return {
        METRIC: (report[METRIC], ""),
        "size_bytes": (report["size_bytes"], "bytes"),
        "latency_p50": (report["latency_ms"]["batch_1"]["p50"], "ms"),
    }


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds, and shares of what the student has."""
    whole = {metric: values_of(rows, metric, variant=STUDENT) for metric in (METRIC, "size_bytes")}
    lines = []
    for name in dict.fromkeys(row.variant for row in rows):
        accuracy, size, latency = (
            values_of(rows, metric, variant=name)
            for metric in (METRIC, "size_bytes", "latency_p50")
        )
        kept = statistics.mean(accuracy) / statistics.mean(whole[METRIC])
        smaller = statistics.mean(whole["size_bytes"]) / statistics.mean(size)
        lines.append(
            [
                name if name == STUDENT else f"`{name}`",
                readable_bytes(round(statistics.mean(size))),
                f"{smaller:.1f}",
                f"{statistics.median(latency):.2f}",
                spread(accuracy),
                f"{kept:.1%}",
                f"{len(accuracy)}",
            ]
        )
    return table(["recipe", "bytes", "times smaller", "ms", "NDCG@10", "kept", "seeds"], lines)


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
