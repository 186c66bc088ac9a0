"""What each way to compress brings: `python -m benchmarks.compression movielens-1m --log LOG`.

The preset's student, or one that is given, compressed by each method alone and by several together,
without and with recovery from the teacher's answers. Bytes of the graph, milliseconds from history
to top 10 at batch 1 on one thread, NDCG@10 on test; how many times smaller than the teacher, and
what is kept of its accuracy (of the student's where there is no row of the teacher). Rows go to
benchmarks/results/compression.json; `--readme` writes the table between the markers
`compression-<dataset>` of the README.
"""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import students
from benchmarks.command import command
from benchmarks.rows import Results, Row, Subject, table, values_of
from benchmarks.students import Material
from benchmarks.variants import RUNS, changes, preset_name, spread, words_of
from jobs.presets import PRESETS, Preset
from jobs.recipes import NAMED
from recsys.evaluate.report import readable_bytes
from recsys.files import STAGE_FILE, fingerprint, read_json
from recsys.models import load_model
from recsys.models.transformer import TransformerConfig

BENCHMARK = "compression"
TEACHER, STUDENT = "the teacher", "the student"
METRIC = "ndcg@10"
LOW, HIGH = f"{METRIC}_low", f"{METRIC}_high"  # the bootstrap interval
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
    name: str = ""
    """What rows call the student, or its teacher, if they are not the preset's."""

    def __post_init__(self) -> None:
        if self.student is not None and len(self.seeds) > 1:
            raise ValueError("a student that is given is of one seed: give it, by --seeds 0")

    def variant(self, what: str) -> str:
        """Returns the name of a row."""
        return f"{what}; {self.name}" if self.name else what

    @property
    def directory(self) -> Path:
        """Where students and what becomes of them go."""
        return RUNS / self.dataset / BENCHMARK / self.name.replace(" ", "-")


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
    subject = Subject(options.dataset, "recsys", options.variant(TEACHER), 0)  # one for all
    given = options.teacher
    own = ["jobs.train", *options.words((), 0)]
    words = teacher_words(given, preset_name(options.dataset)) if given else own
    line = shlex.join(["python", "-m", *words])
    if given or not results.has(subject, line):
        results.put(subject, line, values(made.report))
    for seed in options.seeds:
        measure_student(results, options, made, seed)


def measure_student(results: Results, options: Options, made: Material, seed: int) -> None:
    """Compresses the student of a seed by all recipes, unless that is done."""
    preset = PRESETS[preset_name(options.dataset)]
    directory = options.directory / str(seed)
    student = options.student or directory / "student"
    if options.student is not None:
        if options.flags:
            raise ValueError("--flags are of students that are trained here: leave out --student")
        words = [preset_name(options.dataset), *flags_of(student, made.targets, preset)]
    else:
        # A teacher that is asked live is asked for what the preset's loss reads, and no more.
        keep = () if preset.live else students.KEEP
        words = students.student_words(options, (), seed, keep)
        students.distill(words, made, student)
    # As the student has listened to its teacher, so does its recovery.
    _, distill, *_, asked = read_json(student / STAGE_FILE)["config"]
    listens = [*words_of(listening(distill, preset)), *asking(asked, preset)]
    model = load_model(student).config
    if not isinstance(model, TransformerConfig):
        raise ValueError(f"{student} is no transformer, which these recipes are for")
    subject = Subject(options.dataset, "recsys", options.variant(STUDENT), seed)
    line = shlex.join(["python", "-m", "jobs.distill", *words])
    if not results.has(subject, line):
        results.put(subject, line, values(read_json(student / "report.json")))
    for recipe in options.only or recipes(model):
        subject = subject._replace(variant=options.variant(recipe))
        words = options.words(("--recipe", *recipe.split(), *listens), seed)
        line = shlex.join(["python", "-m", "jobs.compress", *words])
        if results.has(subject, line):
            continue
        output = directory / recipe.replace(" ", ",")
        results.put(subject, line, values(students.compress(words, made, student, output)))


def teacher_words(teacher: Path, preset: str) -> list[str]:
    """Returns the words of the command that made a teacher which is given, by what its stage has
    kept: an ensemble's members by their numbers."""
    stage = read_json(teacher / STAGE_FILE)
    words = [f"jobs.{stage['stage']}", preset]
    if stage["stage"] == "ensemble":
        weights, _ = stage["config"]
        numbers = range(sum(name.startswith("member-") for name in stage["inputs"]))
        stacked = [] if weights == "equal" else ["--weights", weights]
        return [*words, *stacked, "--members", *map(str, numbers)]
    if stage["stage"] != "train":
        return words
    model, train, loss, num_workers = stage["config"]
    default = PRESETS[preset]
    flags = {
        **changes("model", model, default.teacher),
        **changes("train", train, default.train),
        **changes("loss", loss, default.loss),
    }
    return [*words, *words_of(flags), *_workers(num_workers)]


def flags_of(student: Path, targets: Path, preset: Preset) -> list[str]:
    """Returns the flags of `jobs.distill` that a student which is given was made with, but for its
    teacher, by what its stage and that of its targets have kept.

    Raises:
        ValueError: it has not learnt from these targets.
    """
    stage = read_json(student / STAGE_FILE)
    model, distill, train, num_workers, start, asked = stage["config"]
    if not asked and stage["inputs"]["targets"] != fingerprint(targets):
        raise ValueError(f"{student} has learnt from other answers: give its own by --targets")
    kept = {} if asked else read_json(targets / STAGE_FILE)["config"]
    flags = {
        **changes("model", model, preset.student),
        **listening(distill, preset),
        **changes("keep", kept, preset.keep),
        **changes("train", train, preset.train_student),
    }
    words = [*words_of(flags), *asking(asked, preset)]
    return [*words, "--start", start, *_workers(num_workers)]


def listening(distill: Mapping[str, Any], preset: Preset) -> dict[str, str]:
    """Returns the flags, and their values, of how a student has listened; always that of the soft
    labels, for what a row says should not hang on a default."""
    return {"--distill.soft": distill["soft"], **changes("distill", distill, preset.distill)}


def asking(asked: Mapping[str, Any] | None, preset: Preset) -> list[str]:
    """Returns the flags of a teacher that is asked in every step, and for what; or of one that is
    not, where the preset's is.

    Args:
        asked: what for; none for answers that are stored.
    """
    if not asked:
        return ["--no-live"] if preset.live else []
    flags = words_of(changes("keep", asked, preset.keep))
    return flags if preset.live else [*flags, "--live"]


def _workers(count: int | list[int]) -> list[str]:
    counts = [count] if isinstance(count, int) else count
    return ["--num-workers", *map(str, counts)]


def values(report: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Returns value and unit of what is kept of a report; no latency where there is no graph."""
    low, high = report[f"{METRIC}_interval"]
    measured = {
        METRIC: (report[METRIC], ""),
        LOW: (low, ""),
        HIGH: (high, ""),
        "size_bytes": (report["size_bytes"], "bytes"),
    }
    if latency := report.get("latency_ms"):
        measured["latency_p50"] = (latency["batch_1"]["p50"], "ms")
    return measured


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds, and shares of what the teacher has, student by student."""
    names = dict.fromkeys(row.variant for row in rows)
    lines = []
    for name in dict.fromkeys(variant.partition("; ")[2] for variant in names):
        group = [variant for variant in names if variant.partition("; ")[2] == name]
        group.sort(key=lambda v: (not v.startswith(TEACHER), not v.startswith(STUDENT)))
        whole = _means(rows, group[0])
        lines += [_line(rows, variant, whole) for variant in group]
    return table(["recipe", "bytes", "times smaller", "ms", "NDCG@10", "kept", "seeds"], lines)


class _Means(NamedTuple):
    accuracy: float
    size: float


def _means(rows: Sequence[Row], variant: str) -> _Means:
    return _Means(
        *(
            statistics.mean(values_of(rows, metric, variant=variant))
            for metric in (METRIC, "size_bytes")
        )
    )


def _line(rows: Sequence[Row], variant: str, whole: _Means) -> list[str]:
    """Returns the cells of a row of the table."""
    accuracy, latency = (
        values_of(rows, metric, variant=variant) for metric in (METRIC, "latency_p50")
    )
    means = _means(rows, variant)
    recipe, apart, name = variant.partition("; ")
    return [
        variant if recipe in (TEACHER, STUDENT) else f"`{recipe}`{apart}{name}",
        readable_bytes(round(means.size)),
        f"{whole.size / means.size:.1f}",
        f"{statistics.median(latency):.2f}" if latency else "-",
        spread(accuracy) + (_interval(rows, variant) if recipe == TEACHER else ""),
        f"{means.accuracy / whole.accuracy:.1%}",
        f"{len(accuracy)}",
    ]


def _interval(rows: Sequence[Row], variant: str) -> str:
    """Returns the interval of a single measurement; nothing where it was not kept."""
    bounds = [values_of(rows, metric, variant=variant) for metric in (LOW, HIGH)]
    return " ({:.4f}-{:.4f})".format(*(bound for (bound,) in bounds)) if all(bounds) else ""


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
