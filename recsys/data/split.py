"""Which item of a sequence is for training, validation and test."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NONE = -1
SHORTEST_SPLIT = 3


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """Every user's last item is for test, the one before it for validation."""


@dataclass(frozen=True, kw_only=True)
class GlobalTimeCut:
    """Two moments cut the log: what comes before the first is for training.

    A user's target is the first item at or after the moment, predicted from all before it.
    """

    validation_fraction: float = 0.1
    """Share of the interactions between the two moments."""
    test_fraction: float = 0.1
    """Share of the interactions after the second moment."""

    def __post_init__(self) -> None:
        if min(self.validation_fraction, self.test_fraction) <= 0:
            raise ValueError("validation_fraction and test_fraction must be positive")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")


Split = LeaveOneOut | GlobalTimeCut


class Assignment(NamedTuple):
    """What a split says of one sequence."""

    train_length: int
    """Items for training, from the first on."""
    validation_index: int
    """Position of the validation target; -1 if there is none."""
    test_index: int
    """Position of the test target; -1 if there is none."""


def cut_times(split: Split, timestamps_N: np.ndarray) -> tuple[int, int]:
    """Returns the two moments of a `GlobalTimeCut` in a log; zeros for another split.

    Raises:
        ValueError: the times are so few that nothing is left on one side of a moment.
    """
    if isinstance(split, LeaveOneOut) or not len(timestamps_N):
        return 0, 0
    first = 1 - split.validation_fraction - split.test_fraction
    moments = np.quantile(timestamps_N, [first, 1 - split.test_fraction], method="higher")
    if not timestamps_N.min() < moments[0] < moments[1]:
        raise ValueError("the log has too few different times to be cut by time: use leave-one-out")
    return int(moments[0]), int(moments[1])


def assign(split: Split, timestamps_L: np.ndarray, cuts: tuple[int, int]) -> Assignment:
    """Returns what `split` says of a sequence.

    With `LeaveOneOut` a sequence shorter than three items is all training.

    Args:
        timestamps_L: in order.
        cuts: from `cut_times`.
    """
    length = len(timestamps_L)
    match split:
        case LeaveOneOut():
            if length < SHORTEST_SPLIT:
                return Assignment(length, NONE, NONE)
            return Assignment(length - 2, length - 2, length - 1)
        case GlobalTimeCut():
            validation, test = np.searchsorted(timestamps_L, cuts).tolist()
            return Assignment(
                validation,
                validation if 0 < validation < test else NONE,
                test if 0 < test < length else NONE,
            )
