"""Teachers under named settings: the same command with other flags, on several seeds.

What `benchmarks.teacher` and `benchmarks.ablation` have in common.
"""

import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.command import run
from benchmarks.rows import ROOT, Results, Row, Subject, table, values_of
from jobs.command import command
from jobs.presets import PRESETS
from jobs.train import Train
from recsys.config import to_json
from recsys.files import read_json

RUNS = ROOT / "runs" / "bench"
METRICS = ("ndcg@10", "hr@10")
Variants = Mapping[str, Sequence[str]]
"""Flags of `jobs.train`, by the name of what they change."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """On what, how often and by how many to train."""

    dataset: tyro.conf.Positional[str]
    """A data set; the preset that trains on it."""
    log: str | None = None
    """The log; none for where the preset finds it."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, batches and dropout."""
    prepared: Path | None = None
    """The log as a dataset, from jobs.prepare; none to prepare it."""
    num_workers: int | None = None
    """Workers that train, 0 for a process without Ray; none for as many as the preset has."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where they train."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is trained."""

    def prepare(self) -> Path:
        """Returns the dataset, which is made where it is not given."""
        return self.prepared.resolve() if self.prepared else prepare(self.dataset, self.log)

    def words(self, flags: Sequence[str], seed: int) -> list[str]:
        """Returns the arguments of `jobs.train`, and of what else trains."""
        workers = () if self.num_workers is None else ("--num-workers", f"{self.num_workers}")
        device = () if self.device == "cpu" else ("--train.device", self.device)
        return [preset_name(self.dataset), *flags, *workers, *device, "--train.seed", f"{seed}"]


@dataclass(frozen=True, kw_only=True)
class Options(Runs):
    """Which teachers to train."""

    only: tuple[str, ...] = ()
    """Names of variants; none for all."""
    ensemble: bool = False
    """Whether the mean of the scores of all seeds is measured, too."""
    members: tuple[Path, ...] = ()
    """Model directories that join the seeds in it."""
    again: bool = False
    """Whether what has been measured is measured anew."""


def preset_name(dataset: str) -> str:
    """Returns the preset of a data set, which has the same name but for one."""
    return "quickstart" if dataset == "synthetic" else dataset


def main(benchmark: str, variants: Mapping[str, Variants]) -> None:
    """Runs a benchmark as the command line says.

    Args:
        variants: by data set.
    """
    options = tyro.cli(Options, prog=f"python -m benchmarks.{benchmark}")
    if options.dataset not in variants:
        sys.exit(f"error: no variants of {options.dataset!r}; known are {', '.join(variants)}")
    unknown = set(options.only) - set(variants[options.dataset])
    if unknown:
        sys.exit(f"error: no variant {', '.join(sorted(unknown))} of {options.dataset}")
    results = Results(benchmark)
    chosen = different(options.dataset, variants[options.dataset])
    if options.only:
        chosen = {name: flags for name, flags in chosen.items() if name in options.only}
    run(results, options, lambda results, options: measure(results, options, chosen), markdown)


def different(dataset: str, variants: Variants) -> Variants:
    """Returns the first of the variants that come to the same settings."""
    jobs: list[Train] = []
    chosen: dict[str, Sequence[str]] = {}
    for name, flags in variants.items():
        parsed: list[Train] = []
        code = command(Train.from_preset, parsed.append, [preset_name(dataset), *flags])
        assert code == 0, f"flags of {name} are wrong"
        if parsed[0] not in jobs:
            jobs += parsed
            chosen[name] = flags
    return chosen


def measure(results: Results, options: Options, variants: Variants) -> None:
    """Trains and measures what is not measured yet; seed after seed, so that all get one first."""
    for seed in options.seeds:
        for name, flags in variants.items():
            subject = Subject(options.dataset, "recsys", name, seed)
            words = options.words(flags, seed)
            line = shlex.join(["python", "-m", "jobs.train", *words])
            if options.again or not results.has(subject, line):
                report = train(words, options.prepare(), place(results, subject))
                results.put(subject, line, values(report))
    if options.ensemble:
        for name in variants:
            measure_ensemble(results, options, name)


def place(results: Results, subject: Subject) -> Path:
    """Returns where a teacher goes."""
    return RUNS / subject.dataset / results.benchmark / subject.variant / str(subject.seed)


def measure_ensemble(results: Results, options: Options, variant: str) -> None:
    """Measures the mean of a variant's seeds, and their stacked sum, unless that is done."""
    names = [*map(str, options.seeds), *(member.parent.name for member in options.members)]
    mean = Subject(
        options.dataset, "recsys", f"{variant}, ensemble of {len(names)}", options.seeds[0]
    )
    stacked = mean._replace(variant=f"{mean.variant}, stacked")
    members = [place(results, mean._replace(variant=variant, seed=seed)) for seed in options.seeds]
    members += options.members
    preset = preset_name(options.dataset)
    for subject, flags in ((mean, ()), (stacked, ("--weights", "stacked"))):
        words = [preset, *flags, "--members"]
        line = shlex.join(["python", "-m", "jobs.ensemble", *words, *names])
        if results.has(subject, line) and not options.again:
            continue
        report = ensemble(words, members, options.prepare(), place(results, subject))
        seconds = [read_json(member / "report.json")["train_seconds"] for member in members]
        results.put(subject, line, values({**report, "train_seconds": sum(seconds)}))


def teacher_as_student(dataset: str) -> dict[str, str]:
    """Returns flags of `jobs.distill` and their values, for a student that has the shape and the
    training of the preset's teacher."""
    preset = PRESETS[preset_name(dataset)]
    model = changes("model", preset.teacher, preset.student)
    return {**model, **changes("train", preset.train, preset.train_student)}


def changes(group: str, wanted: Any, default: Any) -> dict[str, str]:
    """Returns the flags of a group, and their values, that make `wanted` of a default config."""
    known = to_json(default)
    return {
        f"--{group}.{name.replace('_', '-')}": " ".join(map(str, value))
        if isinstance(value, list)
        else f"{value}"
        for name, value in to_json(wanted).items()
        if value != known.get(name)
    }


def words_of(flags: Mapping[str, str]) -> list[str]:
    """Returns flags and their values as a command line has them: a switch is one word, several
    values are as many."""
    words = []
    for flag, value in flags.items():
        group, _, name = flag.rpartition(".")
        switch = {"True": [flag], "False": [f"{group}.no-{name}"]}
        words += switch.get(value, [flag, *value.split()])
    return words


def prepare(dataset: str, log: str | None) -> Path:
    """Prepares a data set, unless it is there, and returns its directory."""
    output = RUNS / dataset / "dataset"
    flags = ["--log", log] if log else []
    job("prepare", [preset_name(dataset), *flags], output=output)
    return output


def train(words: Sequence[str], dataset: Path, output: Path) -> dict[str, Any]:
    """Trains a teacher, or goes on with it, and returns its report."""
    job("train", words, dataset=dataset, output=output)
    return read_json(output / "report.json")


def ensemble(
    words: Sequence[str], members: Sequence[Path], dataset: Path, output: Path
) -> dict[str, Any]:
    """Makes one teacher of several, unless it is there, and returns its report.

    Args:
        words: arguments of `jobs.ensemble`, to which the members are added.
    """
    job("ensemble", [*words, *map(str, members)], dataset=dataset, output=output)
    return read_json(output / "report.json")


def job(name: str, words: Sequence[str], **places: Path) -> None:
    """Runs `python -m jobs.<name>` in a process of its own.

    Args:
        places: directories, by the names of their flags.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    flags = (word for flag, place in places.items() for word in (f"--{flag}", str(place)))
    subprocess.run([sys.executable, "-m", f"jobs.{name}", *words, *flags], cwd=ROOT, check=True)


def values(report: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Returns value and unit of what is kept of a report."""
    return {
        **{metric: (report[metric], "") for metric in METRICS},
        "validation_ndcg@10": (report["validation"]["ndcg@10"], ""),
        "train_seconds": (report["train_seconds"], "s"),
    }


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds, in the order in which variants were first measured."""
    names = dict.fromkeys(row.variant for row in rows)
    lines = []
    for name in names:
        cells = [spread(values_of(rows, metric, variant=name)) for metric in METRICS]
        seconds = values_of(rows, "train_seconds", variant=name)
        line = next(row.command for row in rows if row.variant == name)
        shown = line.partition(" --train.seed ")[0]
        lines.append(
            [name, *cells, f"{len(seconds)}", f"{statistics.mean(seconds):.0f}", f"`{shown}`"]
        )
    return table(["variant", "NDCG@10", "HR@10", "seeds", "seconds", "command"], lines)


def spread(values: Sequence[float]) -> str:
    """Returns the mean, and the standard deviation where there are several values."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean
