import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluate.codes import GROUP, CodeScorer


def test_a_score_is_the_sum_of_what_the_codes_add():
    partial_PC = np.zeros((2, 256), np.float32)
    partial_PC[0, [3, 5]], partial_PC[1, [3, 7]] = [1, 2], [10, 20]
    codes_VP = np.array([[0, 0], [3, 3], [3, 7], [5, 7], [9, 9]], np.uint8)
    scores_V = CodeScorer(codes_VP).scores(partial_PC)
    np.testing.assert_array_equal(scores_V, [-np.inf, 11, 21, 22, 0])


@pytest.mark.parametrize("num_parts", [1, 3, 8, 16])
def test_it_scores_like_the_product_with_the_rows(num_parts):
    draw = np.random.default_rng(0)
    codes_VP = draw.integers(0, 256, (1000, num_parts), dtype=np.uint8)
    vectors_PCS = draw.standard_normal((num_parts, 256, 4), dtype=np.float32)
    state_PS = draw.standard_normal((num_parts, 4), dtype=np.float32)
    rows_VD = vectors_PCS[np.arange(num_parts), codes_VP].reshape(1000, -1)
    partial_PC = np.einsum("pcs,ps->pc", vectors_PCS, state_PS)
    scores_V = CodeScorer(codes_VP).scores(partial_PC)
    np.testing.assert_allclose(scores_V[1:], rows_VD[1:] @ state_PS.ravel(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 256), (3, 256), (2, 255)])
def test_partial_scores_of_other_codes_are_refused(shape):
    scorer = CodeScorer(np.zeros((5, 2), np.uint8))
    with pytest.raises(ValueError, match=r"not \(2, 256\)"):
        scorer.scores(np.zeros(shape, np.float32))


@given(
    num_scores=st.integers(1, 12 * GROUP),
    k=st.integers(1, 40),
    num_missing=st.integers(0, 50),
    seed=st.integers(0, 99),
)
def test_the_best_are_those_of_a_sort(num_scores, k, num_missing, seed):
    draw = np.random.default_rng(seed)
    scores_V = draw.permutation(num_scores).astype(np.float32)
    scores_V[draw.integers(0, num_scores, num_missing)] = -np.inf
    k = min(k, num_scores)
    columns_K, scores_K = CodeScorer.best(scores_V, k)
    np.testing.assert_array_equal(scores_K, np.sort(scores_V)[::-1][:k])
    np.testing.assert_array_equal(scores_V[columns_K], scores_K)
    assert len(set(columns_K.tolist())) == k
