"""Training speed beside RecTools and RecBole: `python -m benchmarks.train_speed DATASET --log LOG`.

Every system trains a SASRec of the same width, blocks, heads and length with a full softmax on the
same log, with the same threads, in its own process and environment, as its users train it.
`--what` asks one of three questions:

speed            Predicted targets per second of training, and peak memory. A target counts once for
                 every optimiser step in which its loss is computed: all positions of a row here and
                 in RecTools, the one target of an example in RecBole, which makes every prefix an
                 example. Systems alternate. Memory is the largest resident set, data included; of
                 workers, the sum of theirs and the driver's, without Ray's own processes.
time-to-quality  Each peer trains to its best NDCG@10 on validation, within a budget; then recsys
                 trains until its own is as high. The same code ranks for all. Evaluation is not
                 counted; compilation is.
peak             The machine's rate of matrix products, and which share of it a step reaches.

Rows go to benchmarks/results/train_speed.json; what is there is not measured again. `--quick`
tries everything out, small, in runs/bench. `--readme` writes the table between the markers
`train_speed-<dataset>` of the README.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

from benchmarks.command import run
from benchmarks.operations import peak_operations_per_second, step_operations
from benchmarks.peers import RECBOLE, RECSYS, RECTOOLS, System, train
from benchmarks.rows import Results, Row, Subject, table, values_of
from benchmarks.systems.work import Quality, Speed, Work
from benchmarks.variants import RUNS, prepare
from recsys.data.sequences import Dataset
from recsys.models import TransformerConfig
from recsys.train.config import has_bfloat16

BENCHMARK = "train_speed"
LENGTHS = {"synthetic": 50, "movielens-1m": 200, "amazon-beauty": 50}
HEAD_WIDTH = 32
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPEED = Speed(warm_up=10, steps=60)
SLOW_SPEED = Speed(warm_up=2, steps=8)
"""Of systems whose steps take seconds."""
EVALUATE_EVERY_SECONDS = 10.0
PATIENCE = 20


class Contender(NamedTuple):
    """A system and a way to run it."""

    system: System
    variant: str
    flags: tuple[str, ...]
    speed: Speed


CONTENDERS = {
    "recsys": Contender(RECSYS, "one process", ("compile",), SPEED),
    "recsys-workers": Contender(RECSYS, "workers on Ray", ("compile", "workers"), SPEED),
    "recsys-eager": Contender(RECSYS, "one process, not compiled", (), SPEED),
    "rectools": Contender(RECTOOLS, "defaults", (), SLOW_SPEED),
    "recbole": Contender(RECBOLE, "defaults", (), SLOW_SPEED),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    dataset: tyro.conf.Positional[Literal["synthetic", "movielens-1m", "amazon-beauty"]]
    """The data set."""
    log: str | None = None
    """Its log; none for where the preset finds it."""
    prepared: Path | None = None
    """The log as a dataset, from jobs.prepare; none to prepare it."""
    what: Literal["speed", "time-to-quality", "peak"] = "speed"
    """The question."""
    only: tuple[str, ...] = tuple(CONTENDERS)
    """The systems, by the names they have here."""
    repeats: int = 5
    """Repeats of every measurement of speed; tables show medians."""
    threads: int = 2
    """Threads of every system."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where recsys trains, in one process; others do on the processor."""
    budget_minutes: float = 60.0
    """Minutes of training that a peer has to reach its best."""
    profile: bool = False
    """Whether the longest operators of a step are kept, too (peak only)."""
    again: bool = False
    """Whether what has been measured is measured anew."""
    quick: bool = False
    """Whether to try everything out, in a few steps and without compiling."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is measured."""

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(CONTENDERS)
        if unknown:
            raise ValueError(
                f"no system {', '.join(sorted(unknown))}; known are {', '.join(CONTENDERS)}"
            )
        if self.device == "cuda" and ("recsys-workers" in self.only or self.profile):
            raise ValueError(
                "a GPU is measured in one process, and not profiled: give --only recsys, or "
                "recsys-eager, and no --profile"
            )


class Bench:
    """One run of the benchmark: the options, the dataset, the results so far."""

    def __init__(self, options: Options, dataset: Path, results: Results):
        self.options, self.dataset, self.results = options, dataset, results

    def run(self) -> None:
        """Measures what is asked and not measured yet."""
        match self.options.what:
            case "speed":
                self.speed()
            case "time-to-quality":
                self.time_to_quality()
            case "peak":
                self.peak()

    def speed(self) -> None:
        """Measures positions a second and memory; systems alternate."""
        for repeat in range(self.options.repeats):
            for name in self.options.only:
                contender = CONTENDERS[name]
                work = self.work(goal=contender.speed, seed=repeat)
                subject = self.subject(contender.system, contender.variant, repeat)
                if self.wanted(subject):
                    self.keep(subject, *_speed(self.train(contender, work)))

    def time_to_quality(self) -> None:
        """Measures the seconds that each peer takes to its best, and recsys to the same."""
        ours = CONTENDERS["recsys"]
        for name in self.options.only:
            peer = CONTENDERS[name]
            subject = self.subject(peer.system, "to its best", 0)
            if peer.system is RECSYS:
                continue
            if self.wanted(subject):
                self.keep(subject, *_best(self.train(peer, self.work(goal=self.quality()))))
            (enough,) = values_of(self.rows_of(subject), "validation_ndcg@10")
            subject = self.subject(RECSYS, f"to the best of {name}", 0)
            if self.wanted(subject):
                work = self.work(goal=replace(self.quality(), enough=enough))
                self.keep(subject, *_best(self.train(ours, work)))

    def peak(self) -> None:
        """Measures the rates of matrix products and of training steps.

        In bfloat16 only where the machine has it: emulated, a product of this size takes minutes.
        """
        used = "bf16" if has_bfloat16(self.options.device) else "fp32"
        for precision in dict.fromkeys(["fp32", used]):
            subject = self.subject_of_machine(precision)
            if self.wanted(subject):
                rate = peak_operations_per_second(
                    PRECISIONS[precision], self.options.threads, self.options.device
                )
                self.keep(subject, {"gflops_per_second": (rate / 1e9, "GFLOP/s")}, None)
        subject = self.subject_of_machine(used)
        (peak,) = values_of(self.rows_of(subject), "gflops_per_second")
        for width in (64, 256):
            subject = self.subject(RECSYS, "step", 0, width)
            if self.wanted(subject):
                work = self.work(goal=SPEED, width=width, expansion=4)
                seen = self.train(CONTENDERS["recsys"], work)
                self.keep(subject, _rate(work, seen, peak), seen["versions"])
            if self.options.profile:
                self.profile(width)

    def profile(self, width: int) -> None:
        """Keeps the longest operators of a step."""
        subject = self.subject(RECSYS, "operators", 0, width)
        if self.wanted(subject):
            work = self.work(goal=replace(SPEED, profile=True), width=width, expansion=4)
            seen = self.train(CONTENDERS["recsys"], work)
            shares = {f"share of {name}": (share, "") for name, share in seen["operators"]}
            self.keep(subject, shares, seen["versions"])

    def work(
        self, *, goal: Speed | Quality, seed: int = 0, width: int = 64, expansion: int = 1
    ) -> Work:
        """Returns the work, with feed-forward networks `expansion` times as wide as the rest.

        RecTools' are as wide as the rest.
        """
        if self.options.quick and isinstance(goal, Speed):
            goal = replace(goal, warm_up=1, steps=2)
        return Work(
            dataset=self.dataset,
            width=width,
            num_layers=2,
            num_heads=width // HEAD_WIDTH,
            feed_forward_width=width * expansion,
            length=LENGTHS[self.options.dataset],
            num_threads=self.options.threads,
            seed=seed,
            goal=goal,
        )

    def quality(self) -> Quality:
        """Returns the goal of a peer; a try-out ends after two evaluations."""
        if self.options.quick:
            return Quality(budget_seconds=20.0, evaluate_every_seconds=10.0, patience=1)
        return Quality(
            budget_seconds=60 * self.options.budget_minutes,
            evaluate_every_seconds=EVALUATE_EVERY_SECONDS,
            patience=PATIENCE,
        )

    def train(self, contender: Contender, work: Work) -> dict[str, Any]:
        """Returns what the watch saw; a try-out does not compile."""
        print(f"{contender.system.name}, {contender.variant} ...", file=sys.stderr, flush=True)
        flags = [flag for flag in contender.flags if not (self.options.quick and flag == "compile")]
        if self.options.device == "cuda" and contender.system is RECSYS:
            flags.append("cuda")
        return train(contender.system, work, flags)

    def subject(self, system: System, variant: str, seed: int, width: int = 64) -> Subject:
        """Returns what a row of `system` is about."""
        shape = f"d={width} L={LENGTHS[self.options.dataset]}"
        place = ", on a GPU" if self.options.device == "cuda" and system is RECSYS else ""
        return Subject(self.options.dataset, system.name, f"{variant}, {shape}{place}", seed)

    def subject_of_machine(self, precision: str) -> Subject:
        """Returns what a row of the machine's own rate is about."""
        place = ", on a GPU" if self.options.device == "cuda" else ""
        return Subject(self.options.dataset, "torch", f"matrix product, {precision}{place}", 0)

    def rows_of(self, subject: Subject) -> list[Row]:
        """Returns the rows of a subject."""
        return [row for row in self.results.rows() if row.subject == subject]

    def wanted(self, subject: Subject) -> bool:
        """Returns whether the subject is still to be measured."""
        return self.options.again or not self.results.has(subject, self.command(subject))

    def keep(
        self,
        subject: Subject,
        values: dict[str, tuple[float, str]],
        versions: dict[str, str] | None,
    ) -> None:
        """Writes what was measured."""
        self.results.put(subject, self.command(subject), values, measured_with=versions)

    def command(self, subject: Subject) -> str:
        """Returns the command of a row: what decides its value, not how often it is measured."""
        options = self.options
        words = ["python -m benchmarks.train_speed", options.dataset, "--what", options.what]
        words += ["--threads", str(options.threads)]
        if options.device == "cuda" and subject.system not in (RECTOOLS.name, RECBOLE.name):
            words += ["--device", "cuda"]
        if options.what == "time-to-quality":
            words += ["--budget-minutes", f"{options.budget_minutes:g}"]
        return " ".join(words)


Measured = tuple[dict[str, tuple[float, str]], dict[str, str]]
"""Value and unit of each metric, and the versions they were measured with."""


def _speed(seen: dict[str, Any]) -> Measured:
    rate = seen["num_targets"] / seen["seconds"]
    return {
        "tokens_per_second": (rate, "1/s"),
        "peak_memory_mib": (seen["peak_memory_mib"], "MiB"),
    }, seen["versions"]


def _best(seen: dict[str, Any]) -> Measured:
    """Returns the best value of a curve and when it was reached."""
    seconds, value = max(seen["curve"], key=lambda point: (point[1], -point[0]))
    return {
        "validation_ndcg@10": (value, ""),
        "seconds_to_it": (seconds, "s"),
        "seconds_trained": (seen["seconds"], "s"),
        "peak_memory_mib": (seen["peak_memory_mib"], "MiB"),
    }, seen["versions"]


def _rate(work: Work, seen: dict[str, Any], peak: float) -> dict[str, tuple[float, str]]:
    """Returns the operations a second of a step, and their share of the machine's `peak`."""
    rows = seen["batch_rows"]
    model = TransformerConfig(
        width=work.width,
        num_layers=work.num_layers,
        num_heads=work.num_heads,
        head_width=HEAD_WIDTH,
        feed_forward_width=work.feed_forward_width,
        max_length=work.length,
    )
    num_items = Dataset.open(work.dataset).num_items_with_padding
    operations = step_operations(
        model, num_rows=rows, length=work.length, num_items_with_padding=num_items
    )
    rate = operations * seen["num_steps"] / seen["seconds"] / 1e9
    return {"gflops_per_second": (rate, "GFLOP/s"), "share_of_peak": (rate / peak, "")}


def markdown(rows: Sequence[Row]) -> str:
    """Returns medians of speed with their range, then times to quality, then shares of the peak."""
    systems = dict.fromkeys((row.system, row.variant) for row in rows)
    speed, quality, peak = [], [], []
    for system, variant in systems:
        of = {
            row.metric: values_of(rows, row.metric, system=system, variant=variant)
            for row in rows
            if (row.system, row.variant) == (system, variant)
        }
        name = f"{system}, {variant}"
        if "tokens_per_second" in of:
            memory = statistics.median(of["peak_memory_mib"])
            speed.append([name, _median_and_range(of["tokens_per_second"]), f"{memory:,.0f}"])
        if "seconds_to_it" in of:
            value, seconds = of["validation_ndcg@10"][0], of["seconds_to_it"][0]
            quality.append([name, f"{value:.4f}", f"{seconds:,.0f}"])
        if "gflops_per_second" in of:
            share = f"{of['share_of_peak'][0]:.0%}" if "share_of_peak" in of else ""
            peak.append([name, f"{of['gflops_per_second'][0]:,.0f}", share])
    parts = [
        (["training", "targets a second", "MiB at most"], speed),
        (["validation", "NDCG@10", "seconds"], quality),
        (["products", "GFLOP/s", "of the peak"], peak),
    ]
    return "\n\n".join(table(head, lines) for head, lines in parts if lines)


def _median_and_range(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):,.0f}"
    return f"{middle} ({min(values):,.0f}-{max(values):,.0f})" if len(values) > 1 else middle


def measure(results: Results, options: Options) -> None:
    """Measures what is not measured yet."""
    given = options.prepared and options.prepared.resolve()
    Bench(options, given or prepare(options.dataset, options.log), results).run()


def main(options: Options) -> None:
    """Measures, and prints the table of what is measured so far."""
    results = Results(BENCHMARK, RUNS / "quick") if options.quick else Results(BENCHMARK)
    run(results, options, measure, markdown)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, prog="python -m benchmarks.train_speed"))
    except ValueError as error:
        sys.exit(f"error: {error}")
