"""Which way of teaching wins where: `python -m benchmarks.distill_losses amazon-beauty --log LOG`.

The preset's student of the preset's teacher, alone and by every loss, one flag changed at a time.
Test metrics, full ranking, seen items removed. Rows go to benchmarks/results/distill_losses.json;
`--readme` writes the table between the markers `distill_losses-<dataset>` of the README.
"""

import shlex
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks import students
from benchmarks.command import command
from benchmarks.rows import Results, Row, Subject, table, values_of
from benchmarks.students import Material
from benchmarks.variants import METRICS, RUNS, spread
from recsys.distill.objective import Soft
from recsys.files import read_json

BENCHMARK = "distill_losses"
ALONE = "alone"
KL = ("--distill.soft", "kl")
HARD_LABELS_LAST = ("--distill.soft-weight", "1", "--distill.soft-weight-at-end", "0.3")
VARIANTS: dict[str, tuple[str, ...]] = {
    ALONE: KL,  # of the distilled one beside it
    **{soft: ("--distill.soft", soft) for soft in typing.get_args(Soft)},
    "kl, temperature 2": (*KL, "--distill.temperature", "2"),
    "kl, more hard labels": (*KL, "--distill.soft-weight", "0.5"),
    "kl, no hard labels": (*KL, "--distill.soft-weight", "1"),
    "kl, hard labels last": (*KL, *HARD_LABELS_LAST),
    "kl, trust": (*KL, "--distill.trust"),
    "kl and hint": (*KL, "--distill.hint-weight", "1"),
    "kl and contrast": (*KL, "--distill.contrast-weight", "0.1"),
    "kl and relation": (*KL, "--distill.relation-weight", "10"),
    "kl and item ranking": (*KL, "--distill.item-ranking-weight", "0.1"),
    "kl, live": (*KL, "--live"),
    "kl, from noise": (*KL, "--start", "fresh"),
}


@dataclass(frozen=True, kw_only=True)
class Options(students.Options):
    """Which losses to measure."""

    only: tuple[str, ...] = tuple(VARIANTS)
    """Names of losses."""

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(VARIANTS)
        if unknown:
            raise ValueError(f"no loss {', '.join(sorted(unknown))}; known: {list(VARIANTS)}")


def measure(results: Results, options: Options) -> None:
    """Trains and measures what is not measured yet; seed after seed, so that all get one first."""
    made = cache(lambda: students.material(options))
    for seed in options.seeds:
        for variant in options.only:
            subject = Subject(options.dataset, "recsys", variant, seed)
            words = students.student_words(options, VARIANTS[variant], seed)
            line = shlex.join(["python", "-m", "jobs.distill", *words])
            if not results.has(subject, line):
                report = _train(options, made(), variant, seed, words)
                results.put(subject, line, students.cost_and_accuracy(report))


def _train(options: Options, made: Material, variant: str, seed: int, words: list[str]) -> dict:
    directory = RUNS / options.dataset / BENCHMARK / str(seed)
    if variant == ALONE:
        alone = directory / ALONE
        students.distill(words, made, directory / "kl", alone)
        return read_json(alone / "report.json")
    return students.distill(words, made, directory / variant)


def markdown(rows: Sequence[Row]) -> str:
    """Returns means over the seeds."""
    names = list(VARIANTS)
    lines = [
        [
            name,
            *(spread(values_of(rows, metric, variant=name)) for metric in METRICS),
            f"{len(values_of(rows, METRICS[0], variant=name))}",
        ]
        for name in sorted({row.variant for row in rows}, key=names.index)
    ]
    return table(["student", "NDCG@10", "HR@10", "seeds"], lines)


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
