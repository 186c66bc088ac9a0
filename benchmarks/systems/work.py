"""The work that every system is given, and the watch that measures it.

A runner is `python -m benchmarks.systems.<name> WORK`, WORK being a `Work` as JSON; the last line
that it prints is what the watch saw. It runs in the system's own environment, where `recsys` is not
installed: of this repository it imports what needs NumPy, Arrow and PyTorch only.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.config import from_json
from recsys.data.sequences import Dataset
from recsys.evaluate.metrics import ndcg
from recsys.evaluate.ranking import Scorer, rank_targets


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measure steps, after some that warm up."""

    warm_up: int
    """Steps before the clock starts: allocations, compilation."""
    steps: int
    """Steps that are measured."""
    profile: bool = False
    """Whether the operators of the measured steps are recorded, by the systems that can."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Train to the best NDCG@10 on validation, or until one that is good enough."""

    budget_seconds: float
    """Seconds of training at most; evaluation is not counted."""
    evaluate_every_seconds: float
    """Seconds of training between evaluations."""
    patience: int
    """Evaluations without a better value after which training stops."""
    enough: float | None = None
    """The value at which training stops; none to look for the best."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A SASRec on a data set, and what is asked about it."""

    dataset: Path
    """A prepared dataset."""
    width: int
    """Width of item vectors and residual stream (D)."""
    num_layers: int
    """Blocks."""
    num_heads: int
    """Attention heads of a block; together as wide as the residual stream."""
    feed_forward_width: int
    """Hidden width of the feed-forward networks."""
    length: int
    """Longest history."""
    num_threads: int
    """Threads in all."""
    seed: int
    """Seed of weights and batches."""
    goal: Speed | Quality
    """What is measured."""


class Done(Exception):
    """The watch has seen enough."""


@dataclass
class Watch:
    """Times a training run from the inside: it is told of every step.

    A target counts once for every step in which its loss is computed.
    """

    goal: Speed | Quality
    done: bool = False
    num_steps: int = 0
    """Steps so far, those that warm up included."""
    seconds: float = 0.0
    """Of training, from the first step's end (from the end of warming up when speed is asked)."""
    num_targets: int = 0
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Seconds of training and NDCG@10 of every evaluation."""

    def __post_init__(self) -> None:
        self._resumed = time.perf_counter()

    def step(self, num_targets: int, evaluate: Callable[[], float]) -> None:
        """Takes note of a step that is done; evaluates where it is time to."""
        if self.done:
            return
        self.num_steps += 1
        moment = time.perf_counter()
        if isinstance(self.goal, Speed) and self.num_steps <= self.goal.warm_up:
            self._resumed = moment
            return
        self.seconds, self._resumed = self.seconds + moment - self._resumed, moment
        self.num_targets += num_targets
        if isinstance(self.goal, Speed):
            self.done = self.num_steps == self.goal.warm_up + self.goal.steps
            return
        last = self.curve[-1][0] if self.curve else 0.0
        if self.seconds - last >= self.goal.evaluate_every_seconds:
            self.curve.append((self.seconds, evaluate()))
            self.done = _is_over(self.curve, self.goal)
            self._resumed = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Returns what was seen, with this process's peak memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        warm_up = self.goal.warm_up if isinstance(self.goal, Speed) else 0
        return {
            "seconds": self.seconds,
            "num_steps": self.num_steps - warm_up,
            "num_targets": self.num_targets,
            "curve": self.curve,
            "peak_memory_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
        }


def _is_over(curve: list[tuple[float, float]], goal: Quality) -> bool:
    values = [value for _, value in curve]
    if goal.enough is not None and values[-1] >= goal.enough:
        return True
    without_gain = len(values) - 1 - values.index(max(values))
    return without_gain >= goal.patience or curve[-1][0] >= goal.budget_seconds


def validation_ndcg(score: Scorer, dataset: Dataset) -> float:
    """Returns NDCG@10 on validation: full ranking, seen items removed, as everywhere here."""
    return float(ndcg(rank_targets(score, dataset, "validation").ranks_U, 10).mean())


def read_work() -> Work:
    """Returns the work that the command line gives."""
    return from_json(Work, json.loads(sys.argv[1]))


def say(result: dict[str, Any]) -> None:
    """Prints a runner's last line."""
    print(json.dumps(result), flush=True)
