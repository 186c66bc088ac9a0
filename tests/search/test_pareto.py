import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.search.pareto import ACCURACY, LATENCY, SIZE, choose, front, non_dominated, rule_of

INF = float("inf")


def test_front_by_hand():
    # Accuracy up, size down. The third is dominated by the first, the fourth by all.
    values = np.array([[0.5, 10], [0.9, 50], [0.4, 10], [0.4, 60]])
    assert non_dominated(values, [True, False]).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[1, 1], [1, 1]], [True, True]),  # equals do not dominate each other
        ([[INF, 1], [1, 1]], [True, False]),
        ([[-INF, 1], [1, INF]], [False, True]),
        ([[-INF, -INF], [0, INF]], [False, True]),
        ([[3, 3]], [True]),
    ],
)
def test_infinities_and_duplicates_when_more_is_better(values, expected):
    assert non_dominated(np.array(values, float), [True, True]).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_every_point_is_on_the_front_or_dominated_by_one_that_is(points):
    values = np.array(points, float)
    mask = non_dominated(values, [True, True])
    assert mask.any()
    for value, on_front in zip(values, mask, strict=True):
        dominated = ((values >= value).all(axis=1) & (values > value).any(axis=1))[mask].any()
        assert dominated == (not on_front)


def row(name, accuracy, size, latency):
    return {"name": name, ACCURACY: accuracy, SIZE: size, LATENCY: latency}


ROWS = [row("small", 0.198, 10, 3.0), row("fast", 0.199, 20, 1.0), row("best", 0.21, 90, 9.0)]


def test_front_of_rows():
    assert front([*ROWS, row("bad", 0.1, 100, 10.0)]) == [True, True, True, False]
    assert front([]) == []
    close = [row("large", 0.2, 20, 0.101), row("small", 0.2, 10, 0.104)]
    assert front(close) == [False, True]


@pytest.mark.parametrize(
    ("pick", "tolerance", "expected"),
    [
        ("smallest", 0.01, "small"),
        ("smallest", 0.006, "fast"),
        ("smallest", 0.0, "best"),
        ("fastest", 0.01, "fast"),
        ("best", 0.01, "best"),
    ],
)
def test_choose(pick, tolerance, expected):
    chosen = choose(ROWS, teacher_accuracy=0.2, tolerance=tolerance, point=pick)
    assert chosen["name"] == expected


def test_the_most_accurate_is_chosen_where_none_is_good_enough():
    assert choose(ROWS, teacher_accuracy=0.5, tolerance=0.01, point="smallest")["name"] == "best"


@pytest.mark.parametrize(
    ("pick", "teacher", "rule"),
    [
        ("smallest", 0.2, "the smallest within 1.0% of the teacher"),
        ("fastest", 0.2, "the fastest within 1.0% of the teacher"),
        ("fastest", 0.5, "the most accurate: none is within 1.0% of the teacher"),
        ("best", 0.5, "asked for by its name"),
    ],
)
def test_the_rule_that_is_told_is_the_one_that_was_used(pick, teacher, rule):
    how = {"teacher_accuracy": teacher, "tolerance": 0.01, "point": pick}
    assert rule_of(choose(ROWS, **how), **how) == rule


def test_an_unknown_point_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'small'"):
        choose(ROWS, teacher_accuracy=0.2, tolerance=0.01, point="smal")
    with pytest.raises(ValueError, match="did you mean 'fastest'"):
        choose(ROWS, teacher_accuracy=0.2, tolerance=0.01, point="fasttest")
