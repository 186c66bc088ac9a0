"""Students of one teacher: what `benchmarks.gap` and `benchmarks.distill_losses` have in common."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.variants import RUNS, Runs, job, train, values
from recsys.files import read_json

KEEP = ("--keep.num-sampled", "64", "--keep.vectors")
"""What all losses need, so that all students of a data set read the same targets."""


@dataclass(frozen=True, kw_only=True)
class Options(Runs):
    """Whose students, and how many."""

    teacher: Path | None = None
    """The teacher's model directory; none to train that of the preset."""
    flags: str = ""
    """Further flags of jobs.distill: --flags="--train.epochs 24"."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What all students of a data set learn from."""

    dataset: Path
    teacher: Path
    targets: Path

    @property
    def report(self) -> dict[str, Any]:
        """The teacher's report."""
        return read_json(self.teacher / "report.json")


def material(options: Options) -> Material:
    """Returns dataset and teacher, made where they are not given."""
    dataset = options.prepare()
    teacher = options.teacher
    if teacher is None:
        teacher = RUNS / options.dataset / "students" / "teacher"
        train(options.words((), 0), dataset, teacher)
    targets = RUNS / options.dataset / "students" / "targets"
    return Material(dataset=dataset, teacher=teacher, targets=targets)


def student_words(
    options: Options, flags: tuple[str, ...], seed: int, keep: tuple[str, ...] = KEEP
) -> list[str]:
    """Returns the arguments of `jobs.distill`."""
    return options.words((*flags, *shlex.split(options.flags), *keep), seed)


def distill(
    words: list[str], learns_from: Material, output: Path, alone: Path | None = None
) -> dict[str, Any]:
    """Trains a student, or goes on with it, and returns its report.

    Args:
        alone: where the same student without a teacher goes, if it is to be trained.
    """
    places = {
        "dataset": learns_from.dataset,
        "teacher": learns_from.teacher,
        "targets": learns_from.targets,
        "output": output,
        **({"alone": alone} if alone else {}),
    }
    job("distill", words, **places)
    return read_json(output / "report.json")


def compress(words: list[str], learned_from: Material, student: Path, output: Path) -> dict:
    """Compresses a student, unless that is done, and returns the report of what it becomes."""
    places = {
        "dataset": learned_from.dataset,
        "teacher": learned_from.teacher,
        "targets": learned_from.targets,
        "model": student,
        "output": output,
    }
    job("compress", words, **places)
    return read_json(output / "report.json")


def cost_and_accuracy(report: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Returns value and unit of what is kept of a report."""
    return {**values(report), "size_bytes": (report["size_bytes"], "bytes")}
