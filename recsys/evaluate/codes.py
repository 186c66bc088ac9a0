"""The best items of a large catalogue by their codes, without their vectors ever being there.

PQTopK (Petrov et al., Efficient inference of sub-item id-based sequential recommendation models
with millions of items, RecSys 2024, arXiv 2408.09992): what each code adds to a score is known
beforehand, and an item's score is the sum over its codes. ONNX Runtime has no operator for that, so
Numba compiles it, in about a second when this module is imported.
"""

import numba
import numpy as np

NUM_CODES = 256
GROUP = 256  # scores whose maximum is found first


class CodeScorer:
    """Scores items by their codes_VP (uint8); row 0 is the padding."""

    def __init__(self, codes_VP: np.ndarray):
        self.codes_VP = np.ascontiguousarray(codes_VP, np.uint8)

    def scores(self, partial_PC: np.ndarray) -> np.ndarray:
        """Returns scores_V, -inf for the padding.

        Args:
            partial_PC: float32, what each code of each part adds to a score.

        Raises:
            ValueError: it is not of as many parts as items have codes, or not of 256 codes.
        """
        expected = (self.codes_VP.shape[1], NUM_CODES)
        if partial_PC.shape != expected:  # compiled code would read what is not there
            raise ValueError(f"partial scores of shape {partial_PC.shape}, not {expected}")
        scores_V = np.empty(len(self.codes_VP), np.float32)
        _sum_parts(self.codes_VP, partial_PC, scores_V)
        scores_V[0] = -np.inf
        return scores_V

    @staticmethod
    def best(scores_V: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the columns_K of the k best scores and these scores_K, best first.

        They, or others as good, are in the k groups with the highest maxima, or in the rest that
        fills no group.
        """
        num_groups, rest = divmod(len(scores_V), GROUP)
        groups_K = np.arange(num_groups)
        if k < num_groups:
            maxima_G = scores_V[: num_groups * GROUP].reshape(num_groups, GROUP).max(axis=1)
            groups_K = np.argpartition(maxima_G, -k)[-k:]
        in_groups_KN = groups_K[:, None] * GROUP + np.arange(GROUP)
        columns_N = np.concatenate([in_groups_KN.ravel(), num_groups * GROUP + np.arange(rest)])
        scores_N = scores_V[columns_N]
        best_K = np.argpartition(scores_N, -k)[-k:]
        best_K = best_K[np.argsort(-scores_N[best_K])]
        return columns_N[best_K], scores_N[best_K]


# Without fastmath, for which the compiler gathers vectors, and that is slower.
@numba.njit("void(uint8[:, ::1], float32[:, ::1], float32[::1])", nogil=True)
def _sum_parts(codes_VP, partial_PC, scores_V):
    for item in range(len(codes_VP)):
        score = np.float32(0)
        for part in range(codes_VP.shape[1]):
            score += partial_PC[part, codes_VP[item, part]]
        scores_V[item] = score
