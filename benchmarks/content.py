"""What item text is worth: `python -m benchmarks.content amazon-beauty --log LOG --items ITEMS`.

The preset's teacher with item vectors of ids, and of ids and text, on a log some of whose items are
kept out of training; targets that are such items (cold) and others (warm) apart. Rows go to
benchmarks/results/content.json; `--readme` writes the table between the markers `content-<dataset>`
of the README.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.rows import Results, Row, Subject, table, values_of, write_block
from benchmarks.variants import METRICS, RUNS, job, spread, train

BENCHMARK = "content"
VARIANTS = {"ids": (), "ids and text": ("--model.content", "text")}
PARTS = ("all", "cold", "warm")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to train on."""

    dataset: tyro.conf.Positional[str]
    """A data set; the preset that trains on it."""
    log: str
    """The log."""
    items: str
    """The item table."""
    text_columns: tuple[str, ...] = ("title", "brand", "categories")
    """Its columns of text."""
    encoder: str = "bert-base-uncased"
    """What encodes them: a name on the Hugging Face hub, or a directory."""
    cold_items: float = 0.05
    """Share of items that are kept out of training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batches and dropout."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is trained."""


def main(options: Options) -> None:
    """Trains what is not measured yet, and prints the table."""
    results = Results(BENCHMARK)
    if not options.readme:
        for seed in options.seeds:
            for variant in VARIANTS:
                measure(results, options, variant, seed)
    text = markdown([row for row in results.rows() if row.dataset == options.dataset])
    print(text)
    if options.readme:
        write_block(f"{BENCHMARK}-{options.dataset}", text)


def measure(results: Results, options: Options, variant: str, seed: int) -> None:
    """Trains and measures a variant on a seed, unless that is done."""
    subject = Subject(options.dataset, "recsys", variant, seed)
    preparation = [options.dataset, "--cold-items", f"{options.cold_items:g}"]
    preparation += ["--content.text-columns", *options.text_columns]
    training = [options.dataset, *VARIANTS[variant], "--train.seed", str(seed)]
    stages = {"prepare": preparation, "train": training}
    line = " && ".join(shlex.join(["python", "-m", f"jobs.{k}", *v]) for k, v in stages.items())
    if results.has(subject, line):
        return
    directory = RUNS / options.dataset / BENCHMARK
    dataset = directory / "dataset"
    places = ["--log", options.log, "--items", options.items, "--output", str(dataset)]
    job("prepare", [*preparation, "--content.text-encoder", options.encoder, *places])
    report = train(training, dataset, directory / variant / str(seed))
    results.put(subject, line, values(report))


def values(report: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Returns the metrics of all targets, of cold and of warm ones."""
    parts = {"all": report, "cold": report["cold"], "warm": report["warm"]}
    return {f"{m} {part}": (parts[part][m], "") for part in PARTS for m in METRICS}


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds."""
    lines = [
        [
            variant,
            *(
                spread(values_of(rows, f"{metric} {part}", variant=variant))
                for part in PARTS
                for metric in METRICS
            ),
        ]
        for variant in dict.fromkeys(row.variant for row in rows)
    ]
    heads = [f"{metric.upper()}, {part}" for part in PARTS for metric in METRICS]
    return table(["item vectors", *heads], lines)


if __name__ == "__main__":
    main(tyro.cli(Options, prog=f"python -m benchmarks.{BENCHMARK}"))
