import numpy as np
import pytest

from recsys.evaluate.codes import CodeScorer


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


@pytest.mark.parametrize(
    "partial",
    [np.zeros(shape, np.float32) for shape in [(1, 256), (3, 256), (2, 255), (512,), ()]]
    + [np.zeros((2, 256), np.float64)],
)
def test_partial_scores_of_other_codes_are_refused(partial):
    scorer = CodeScorer(np.zeros((5, 2), np.uint8))
    with pytest.raises(ValueError, match=r"not float32 of shape \(2, 256\)"):
        scorer.scores(partial)


@pytest.mark.parametrize(
    "codes", [np.zeros(4, np.uint8), np.zeros((0, 2), np.uint8), np.zeros((4, 2), np.int64)]
)
def test_what_are_no_codes_is_refused(codes):
    with pytest.raises(ValueError, match="no codes of items"):
        CodeScorer(codes)
