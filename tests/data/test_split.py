"""Splits, worked out by hand."""

import numpy as np
import pytest

from recsys.data.split import Assignment, GlobalTimeCut, LeaveOneOut, assign, cut_times


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, (0, -1, -1)), (1, (1, -1, -1)), (2, (2, -1, -1)), (3, (1, 1, 2)), (5, (3, 3, 4))],
)
def test_leave_one_out(length, expected):
    assert assign(LeaveOneOut(), np.arange(length), (0, 0)) == Assignment(*expected)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([1, 2, 3], (3, -1, -1)),  # all before the first moment
        ([1, 10, 11, 20, 21], (1, 1, 3)),
        ([1, 20], (1, -1, 1)),  # nothing between the moments
        ([1, 10], (1, 1, -1)),
        ([10, 11, 20], (0, -1, 2)),  # no history before the validation target
        ([20, 21], (0, -1, -1)),
    ],
)
def test_global_time_cut_at_10_and_20(times, expected):
    assert assign(GlobalTimeCut(), np.array(times), (10, 20)) == Assignment(*expected)


def test_moments_are_times_of_the_log_with_the_shares_behind_them():
    first, second = cut_times(GlobalTimeCut(validation_fraction=0.2), np.arange(100))
    assert (first, second) == (70, 90)
    assert cut_times(LeaveOneOut(), np.arange(100)) == (0, 0)


def test_too_few_times_are_refused():
    with pytest.raises(ValueError, match="too few different times"):
        cut_times(GlobalTimeCut(), np.array([5, 5, 5]))


@pytest.mark.parametrize("fractions", [(0.0, 0.1), (0.5, 0.5)])
def test_fractions_are_checked(fractions):
    with pytest.raises(ValueError, match="test_fraction"):
        GlobalTimeCut(validation_fraction=fractions[0], test_fraction=fractions[1])
