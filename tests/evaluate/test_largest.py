import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluate.largest import BLOCK, largest


@given(
    num_scores=st.integers(0, 12 * BLOCK),
    num_values=st.integers(1, 5000),
    k=st.integers(0, 40),
    num_missing=st.integers(0, 50),
    seed=st.integers(0, 99),
)
def test_it_is_the_head_of_a_stable_sort(num_scores, num_values, k, num_missing, seed):
    draw = np.random.default_rng(seed)
    scores_V = draw.integers(0, num_values, num_scores).astype(np.float32)
    if num_scores:
        scores_V[draw.integers(0, num_scores, num_missing)] = -np.inf
    expected_K = np.argsort(-scores_V, kind="stable")[:k]
    np.testing.assert_array_equal(largest(scores_V, k), expected_K)


def test_there_are_as_many_whatever_they_are():
    assert len(set(largest(np.full(1000, np.nan), 10).tolist())) == 10
