"""recsys: full softmax, every position once an epoch in packed rows; else its defaults.

Flags after the work: `compile`, as `--train.compile`; `cuda`, for a GPU, whose memory is then what
is measured; `workers`, for a worker a thread on Ray, as `--num-workers`, instead of threads in one
process. Workers measure speed only.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.systems.work import (
    Done,
    Quality,
    Speed,
    Watch,
    Work,
    read_work,
    say,
    validation_ndcg,
)
from jobs.on_ray import start_ray
from recsys.data.batches import Batches
from recsys.data.sequences import Dataset
from recsys.evaluate.cost import versions
from recsys.files import read_json, write_json
from recsys.models import TransformerConfig
from recsys.models.interface import SequenceModel, torch_scorer
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit
from recsys.train.objective import TensorBatch, next_item

NUM_OPERATORS = 15  # of a profile


@dataclass
class Told:
    """The usual objective; it tells the watch of a step before it begins, or reads, the next."""

    watch: Watch
    dataset: Path
    num_targets: int | None = None
    """Of the step before; none before the first."""
    model: SequenceModel | None = None
    """What is trained, from its first step on."""
    repeats = True  # as the usual one: what a GPU repeats says nothing, so `look_up` does

    def look_up(self, batch: TensorBatch) -> TensorBatch:
        """Tells of the step before, where the GPU repeats a recorded one."""
        if isinstance(self.watch.goal, Quality):  # the step is at work, and evaluating is no part
            torch.cuda.synchronize()
        self._tell(batch)
        return batch._replace(found=True)

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> torch.Tensor:
        self.model = model
        if not batch.found:
            self._tell(batch)
        return next_item(model, batch)

    def _tell(self, batch: TensorBatch) -> None:
        if self.num_targets is not None:
            self.watch.step(self.num_targets, self._evaluate)
            self.after_step()
        self.num_targets = int((batch.targets_BL != 0).sum())

    def after_step(self) -> None:
        """Ends the run once the watch has seen enough."""
        if self.watch.done:
            raise Done

    def _evaluate(self) -> float:
        assert self.model is not None
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, enabled=False):  # as outside of a step
            value = validation_ndcg(torch_scorer(self.model), Dataset.open(self.dataset))
        self.model.train()
        return value


@dataclass
class Profiled(Told):
    """Records the operators of the measured steps."""

    profiler: profile = field(default_factory=lambda: profile(activities=[ProfilerActivity.CPU]))

    def after_step(self) -> None:
        assert isinstance(self.watch.goal, Speed)
        if self.watch.num_steps == self.watch.goal.warm_up:
            self.profiler.start()
        if self.watch.done:
            self.profiler.stop()
            raise Done


@dataclass
class ToldByWorkers(Told):
    """Leaves in `output` what each worker saw; a worker that ended its run would be replaced."""

    output: Path = Path()

    def after_step(self) -> None:
        if self.watch.done:
            rank = torch.distributed.get_rank()
            write_json(self.output / f"watch-{rank}.json", self.watch.result())


def batch_rows(work: Work) -> int:
    """Returns the default rows of a batch, as many as the workers can share."""
    return -(-TrainConfig.batch_rows // work.num_threads) * work.num_threads


def task_of(work: Work, told: Told, flags: Sequence[str]) -> Task:
    """Returns the training that a user would ask for."""
    rows = batch_rows(work)
    epochs = TrainConfig.epochs
    if isinstance(work.goal, Speed):
        batches = Batches(
            Dataset.open(work.dataset), num_rows=rows, length=work.length, seed=work.seed, epoch=0
        )
        epochs = (work.goal.warm_up + work.goal.steps) // len(batches) + 2
    return Task(
        dataset=work.dataset,
        model=TransformerConfig(
            width=work.width,
            num_layers=work.num_layers,
            num_heads=work.num_heads,
            head_width=work.width // work.num_heads,
            feed_forward_width=work.feed_forward_width,
            max_length=work.length,
        ),
        train=TrainConfig(
            epochs=epochs,
            batch_rows=rows,
            evaluate_every=epochs,  # the watch evaluates
            compile="compile" in flags,
            device="cuda" if "cuda" in flags else "cpu",
            num_threads=1 if "workers" in flags else work.num_threads,
            seed=work.seed,
        ),
        objective=told,
    )


def in_process(work: Work, flags: Sequence[str], directory: Path) -> dict[str, Any]:
    """Returns what the watch sees of a training in this process."""
    watch = Watch(work.goal)
    asks_profile = isinstance(work.goal, Speed) and work.goal.profile
    told = (Profiled if asks_profile else Told)(watch, work.dataset)
    with suppress(Done):
        fitted = fit(task_of(work, told, flags), directory)
        watch.curve.append((watch.seconds, fitted.history[-1]["ndcg@10"]))
    if isinstance(told, Profiled):
        return {**watch.result(), "operators": operators(told.profiler)}
    return watch.result()


def on_workers(work: Work, flags: Sequence[str], directory: Path) -> dict[str, Any]:
    """Returns the same of a training on Ray, a worker a thread; memory is of workers and driver."""
    start_ray()
    from recsys.train.on_ray import fit_on_ray

    watch = Watch(work.goal)
    told = ToldByWorkers(watch, work.dataset, output=directory)
    fit_on_ray(task_of(work, told, flags), directory, work.num_threads)
    seen = [read_json(directory / f"watch-{rank}.json") for rank in range(work.num_threads)]
    peak = watch.result()["peak_memory_mib"] + sum(each["peak_memory_mib"] for each in seen)
    return {
        **seen[0],
        "num_targets": sum(each["num_targets"] for each in seen),
        "peak_memory_mib": peak,
    }


def operators(profiler: profile) -> list[tuple[str, float]]:
    """Returns the share of the longest operators in all of the recorded time."""
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    longest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:NUM_OPERATORS]
    return [(event.key, event.self_cpu_time_total / total) for event in longest]


def main(work: Work, flags: Sequence[str]) -> None:
    """Trains as `work` says."""
    with tempfile.TemporaryDirectory() as directory:
        run = on_workers if "workers" in flags else in_process
        result = run(work, flags, Path(directory))
    if "cuda" in flags:
        result["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    say({**result, "batch_rows": batch_rows(work), "versions": versions()})


if __name__ == "__main__":
    main(read_work(), sys.argv[2:])
