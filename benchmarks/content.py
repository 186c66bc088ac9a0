"""What item text is worth: `python -m benchmarks.content amazon-beauty --log LOG --items ITEMS`.

The preset's teacher with item vectors of ids, and of ids and text, on a log some of whose items are
kept out of training; targets that are such items (cold) and others (warm) apart. With text, ids are
left out of training now and then, which decides between cold items and warm ones; or the encoder
learns, too. `--cold-items 0` is the log as it is. `--ensemble` adds the mean of the scores of all
seeds, `--taught` models of the same shape that it teaches: born-again networks (Furlanello et al.,
arXiv 1805.04770). Rows go to benchmarks/results/content.json; `--readme` writes the table between
the markers `content-<dataset>` of the README.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.rows import Results, Row, Subject, table, values_of
from benchmarks.students import Material, distill
from benchmarks.variants import (
    METRICS,
    RUNS,
    Runs,
    ensemble,
    job,
    spread,
    teacher_as_student,
    train,
    words_of,
)
from recsys.files import STAGE_FILE, read_json

BENCHMARK = "content"
TEXT = ("--model.content", "text")
VARIANTS = {
    "ids": (),
    "ids and text": TEXT,
    "ids and text, half of the ids left out": (*TEXT, "--model.id-dropout", "0.5"),
    "ids and text, the encoder learns": (*TEXT, "--model.num-read", "32"),
}
TAUGHT = {
    "--distill.soft": "kl",
    "--distill.soft-weight": "0.9",
    "--model.dropout": "0.3",
    "--train.epochs": "16",
    "--train.evaluate-every": "2",
}
"""Where a model that the ensemble teaches is unlike its members: soft labels keep it from learning
by heart, too."""
PARTS = ("all", "cold", "warm")


@dataclass(frozen=True, kw_only=True)
class Options(Runs):
    """What to train on."""

    items: str | None = None
    """The item table; with the log it makes the dataset, where none is given."""
    text_columns: tuple[str, ...] = ("title", "brand", "categories")
    """Its columns of text."""
    encoder: str = "bert-base-uncased"
    """What encodes them: a name on the Hugging Face hub, or a directory."""
    cold_items: float = 0.05
    """Share of items that are kept out of training; rows without any are rows of their own."""
    only: tuple[str, ...] = tuple(VARIANTS)
    """Names of variants."""
    ensemble: bool = False
    """Whether the mean of the scores of all seeds is measured, too."""
    taught: bool = False
    """Whether models of the same shape and training that the ensemble teaches are, too."""

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(VARIANTS)
        if unknown:
            raise ValueError(f"no variant {', '.join(sorted(unknown))}; known: {list(VARIANTS)}")
        if not (self.readme or self.prepared or (self.log and self.items)):
            raise ValueError("give --log and --items, or the dataset made of them by --prepared")

    @property
    def held_out(self) -> str:
        """How much of the log is kept out of training."""
        return f"{self.cold_items:.0%} of items held out"

    @property
    def directory(self) -> Path:
        """Where the dataset and its teachers go."""
        return RUNS / self.dataset / BENCHMARK / self.held_out.replace(" ", "-")

    @property
    def preparation(self) -> list[str]:
        """What tells `jobs.prepare` to make of the log, which dataset."""
        words = [self.dataset, "--cold-items", f"{self.cold_items:g}"]
        return [*words, "--content.text-columns", *self.text_columns]

    def prepare(self) -> Path:
        """Returns the dataset with content, which is made where it is not given.

        Raises:
            ValueError: the one that is given was made otherwise than the rows would say.
        """
        if self.prepared is not None:
            made = read_json(self.prepared / STAGE_FILE)["config"]
            columns = tuple(made["content"]["text_columns"])
            if (made["cold_items"], columns) != (self.cold_items, self.text_columns):
                raise ValueError(
                    f"{self.prepared} has other cold items or text columns: give --cold-items "
                    f"{made['cold_items']:g} --text-columns {' '.join(columns)}"
                )
            return self.prepared.resolve()
        dataset = self.directory / "dataset"
        given = ["--log", f"{self.log}", "--items", f"{self.items}"]
        given += ["--content.text-encoder", self.encoder]
        job("prepare", [*self.preparation, *given], output=dataset)
        return dataset


def measure(results: Results, options: Options) -> None:
    """Trains and measures what is not measured yet; seed after seed, so that all get one first."""
    for seed in options.seeds:
        for variant in options.only:
            measure_alone(results, options, variant, seed)
    for variant in options.only if options.ensemble else ():
        measure_ensemble(results, options, variant)
    for seed in options.seeds if options.taught else ():
        for variant in options.only:
            measure_taught(results, options, variant, seed)


def measure_alone(results: Results, options: Options, variant: str, seed: int) -> None:
    """Trains and measures a variant on a seed, unless that is done."""
    subject = Subject(options.dataset, "recsys", f"{variant}; {options.held_out}", seed)
    training = options.words(VARIANTS[variant], seed)
    stages = {"prepare": options.preparation, "train": training}
    line = " && ".join(shlex.join(["python", "-m", f"jobs.{k}", *v]) for k, v in stages.items())
    if results.has(subject, line):
        return
    report = train(training, options.prepare(), options.directory / variant / str(seed))
    results.put(subject, line, values(report))


def measure_ensemble(results: Results, options: Options, variant: str) -> None:
    """Measures the mean of a variant's seeds, unless that is done."""
    words = [options.dataset, "--members"]
    line = shlex.join(["python", "-m", "jobs.ensemble", *words, *map(str, options.seeds)])
    name = f"{ensemble_of(variant, options)}; {options.held_out}"
    subject = Subject(options.dataset, "recsys", name, options.seeds[0])
    if not results.has(subject, line):
        results.put(subject, line, values(make_ensemble(options, variant)))


def make_ensemble(options: Options, variant: str) -> dict[str, Any]:
    """Makes the mean of a variant's seeds, unless it is there, and returns its report."""
    home = options.directory
    members = [home / variant / str(seed) for seed in options.seeds]
    output = home / ensemble_of(variant, options)
    return ensemble([options.dataset, "--members"], members, options.prepare(), output)


def measure_taught(results: Results, options: Options, variant: str, seed: int) -> None:
    """Trains and measures a model that a variant's ensemble teaches, unless that is done."""
    teacher = ensemble_of(variant, options)
    name = f"{variant}, taught by the ensemble"
    subject = Subject(options.dataset, "recsys", f"{name}; {options.held_out}", seed)
    flags = words_of({**teacher_as_student(options.dataset), **TAUGHT})
    words = options.words((*VARIANTS[variant], *flags), seed)
    line = shlex.join(["python", "-m", "jobs.distill", *words])
    if results.has(subject, line):
        return
    make_ensemble(options, variant)
    home = options.directory
    learns_from = Material(
        dataset=options.prepare(), teacher=home / teacher, targets=home / f"targets of {teacher}"
    )
    results.put(subject, line, values(distill(words, learns_from, home / name / str(seed))))


def ensemble_of(variant: str, options: Options) -> str:
    """Returns the name of the mean of a variant's seeds."""
    return f"{variant}, ensemble of {len(options.seeds)}"


def values(report: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Returns the metrics of all targets and, where there are both, of cold and warm ones."""
    parts = {"all": report, **{part: report[part] for part in PARTS if part in report}}
    return {f"{m} {part}": (values[m], "") for part, values in parts.items() for m in METRICS}


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds."""
    lines = [
        [
            variant,
            *(
                spread(values) if values else ""
                for part in PARTS
                for metric in METRICS
                for values in [values_of(rows, f"{metric} {part}", variant=variant)]
            ),
        ]
        for variant in dict.fromkeys(row.variant for row in rows)
    ]
    heads = [f"{metric.upper()}, {part}" for part in PARTS for metric in METRICS]
    return table(["item vectors", *heads], lines)


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
