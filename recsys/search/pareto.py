"""Dominance, the Pareto front, and picking a point of it: pure functions of values."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ACCURACY, SIZE, LATENCY = "validation_ndcg@10", "size_bytes", "latency_ms"
LATENCY_DIGITS = 2
"""Decimals of a latency in milliseconds; the same model twice differs in the next."""
RULES = ("smallest", "fastest")
OBJECTIVES = {ACCURACY: True, SIZE: False, LATENCY: False}
"""What a point is judged by, and whether more is better."""


def non_dominated(values_PM: np.ndarray, maximise_M: Sequence[bool]) -> np.ndarray:
    """Returns which points no other point dominates, as booleans.

    A point dominates another if it is at least as good by every measure and better by one.
    Points that are equal by all measures do not dominate each other.
    """
    signed_PM = np.where(maximise_M, -np.asarray(values_PM, float), values_PM)
    no_worse_PP = (signed_PM[:, None] <= signed_PM[None]).all(axis=2)
    better_PP = (signed_PM[:, None] < signed_PM[None]).any(axis=2)
    return np.asarray(~(no_worse_PP & better_PP).any(axis=0))


def front(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Returns which rows are on the front of `OBJECTIVES`, latencies to `LATENCY_DIGITS`."""
    if not rows:
        return []
    values_PM = np.array([[row[name] for name in OBJECTIVES] for row in rows], float)
    values_PM[:, list(OBJECTIVES).index(LATENCY)] = [
        round(row[LATENCY], LATENCY_DIGITS) for row in rows
    ]
    return non_dominated(values_PM, list(OBJECTIVES.values())).tolist()


def choose(
    rows: Sequence[Mapping[str, Any]], *, teacher_accuracy: float, tolerance: float, point: str
) -> Mapping[str, Any]:
    """Returns the row that the rule picks.

    Args:
        rows: points of the front.
        tolerance: how much of the teacher's accuracy, on validation, may be lost.
        point: "smallest" or "fastest" of those within the tolerance, or a point's name. Where none
            is within it, the most accurate.

    Raises:
        ValueError: there are no rows, or none of that name.
    """
    if not rows:
        raise ValueError("the frontier is empty: run jobs.search")
    if point not in RULES:
        return _named(rows, point)
    enough = [row for row in rows if _is_within(row, teacher_accuracy, tolerance)]
    if not enough:
        return max(rows, key=lambda row: row[ACCURACY])
    cost = SIZE if point == "smallest" else LATENCY
    return min(enough, key=lambda row: (row[cost], -row[ACCURACY]))


def rule_of(
    row: Mapping[str, Any], *, teacher_accuracy: float, tolerance: float, point: str
) -> str:
    """Returns by which rule `choose` has picked a row, in words."""
    if point not in RULES:
        return "asked for by its name"
    if _is_within(row, teacher_accuracy, tolerance):
        return f"the {point} within {tolerance:.1%} of the teacher"
    return f"the most accurate: none is within {tolerance:.1%} of the teacher"


def _is_within(row: Mapping[str, Any], teacher_accuracy: float, tolerance: float) -> bool:
    return row[ACCURACY] >= (1 - tolerance) * teacher_accuracy


def _named(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    by_name = {row["name"]: row for row in rows}
    if name not in by_name:
        near = difflib.get_close_matches(name, [*RULES, *by_name], n=1) or list(by_name)[:1]
        raise ValueError(f"no point {name!r} on the frontier; did you mean {near[0]!r}?")
    return by_name[name]
