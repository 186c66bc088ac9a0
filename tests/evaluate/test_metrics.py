import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recsys.evaluate import metrics
from recsys.evaluate.metrics import bootstrap_interval, coverage, hit_rate, ndcg, reciprocal_rank

RANKS = arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 200))


def test_ndcg_by_hand():
    ranks_U = np.array([0, 1, 2, 9, 10])
    expected = [1.0, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0.0]
    np.testing.assert_allclose(ndcg(ranks_U, 10), expected)
    np.testing.assert_allclose(ndcg(ranks_U, 1), [1, 0, 0, 0, 0])


def test_hit_rate_by_hand():
    np.testing.assert_array_equal(hit_rate(np.array([0, 4, 5, 6]), 5), [1, 1, 0, 0])


def test_reciprocal_rank_by_hand():
    np.testing.assert_allclose(reciprocal_rank(np.array([0, 1, 3])), [1, 0.5, 0.25])


def test_coverage_counts_each_item_once_and_never_the_padding():
    assert coverage(np.array([[1, 2, 0], [2, 3, 0]]), num_items=6) == 0.5
    assert coverage(np.empty((0, 10), np.int64), num_items=6) == 0.0


@given(ranks_U=RANKS, k=st.integers(1, 60))
def test_a_longer_list_is_never_worse(ranks_U, k):
    assert (ndcg(ranks_U, k + 1) >= ndcg(ranks_U, k)).all()
    assert (hit_rate(ranks_U, k + 1) >= hit_rate(ranks_U, k)).all()


@given(ranks_U=RANKS, k=st.integers(1, 60))
def test_a_worse_rank_is_never_better(ranks_U, k):
    for metric in (lambda r: ndcg(r, k), lambda r: hit_rate(r, k), reciprocal_rank):
        assert (metric(ranks_U + 1) <= metric(ranks_U)).all()


@given(ranks_U=RANKS, k=st.integers(1, 60))
def test_ndcg_lies_between_nothing_and_a_hit(ranks_U, k):
    assert (ndcg(ranks_U, k) >= 0).all()
    assert (ndcg(ranks_U, k) <= hit_rate(ranks_U, k)).all()


def test_at_one_ndcg_is_hit_rate():
    ranks_U = np.arange(5)
    np.testing.assert_array_equal(ndcg(ranks_U, 1), hit_rate(ranks_U, 1))


def test_interval_is_that_of_the_normal_approximation():
    values_U = np.random.default_rng(1).binomial(1, 0.3, 10_000).astype(float)
    low, high = bootstrap_interval(values_U, seed=0, num_samples=4000)
    mean, half = values_U.mean(), 1.96 * values_U.std() / 100
    assert low == pytest.approx(mean - half, abs=5e-4)
    assert high == pytest.approx(mean + half, abs=5e-4)


def test_interval_is_that_of_drawing_users_one_by_one():
    generator = np.random.default_rng(2)
    values_U = ndcg(generator.geometric(0.2, 300) - 1, 10)
    draws = generator.integers(0, 300, (4000, 300))
    expected = np.quantile(values_U[draws].mean(axis=1), [0.025, 0.975])
    found = bootstrap_interval(values_U, seed=0, num_samples=4000)
    np.testing.assert_allclose(found, expected, atol=3e-3)


def test_interval_of_equal_values_is_that_value():
    assert bootstrap_interval(np.full(20, 0.25), seed=0) == (0.25, 0.25)
    assert bootstrap_interval(np.array([1.0]), seed=0) == (1.0, 1.0)


def test_interval_is_the_same_in_chunks_and_for_the_same_seed(monkeypatch):
    values_U = reciprocal_rank(np.arange(50))
    whole = bootstrap_interval(values_U, seed=3)
    assert whole == bootstrap_interval(values_U, seed=3)
    assert whole != bootstrap_interval(values_U, seed=4)
    monkeypatch.setattr(metrics, "MAX_DRAWS", 120)
    assert whole == pytest.approx(bootstrap_interval(values_U, seed=3))


@given(values_U=arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_interval_lies_within_the_values(values_U):
    low, high = bootstrap_interval(values_U, seed=0, num_samples=50)
    assert values_U.min() - 1e-9 <= low <= high <= values_U.max() + 1e-9
