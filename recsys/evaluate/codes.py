"""Scores of a large catalogue by its items' codes, without their vectors ever being there.

PQTopK (Petrov et al., Efficient inference of sub-item id-based sequential recommendation models
with millions of items, RecSys 2024, arXiv 2408.09992): what each code adds to a score is known
beforehand, and an item's score is the sum over its codes. ONNX Runtime has no operator for that, so
Numba compiles it, in about a second when this module is imported.
"""

import numba
import numpy as np

NUM_CODES = 256


class CodeScorer:
    """Scores items by their codes_VP; row 0 is the padding."""

    def __init__(self, codes_VP: np.ndarray):
        """Takes the codes.

        Raises:
            ValueError: they are not of the type and shape that codes have.
        """
        if codes_VP.dtype != np.uint8 or codes_VP.ndim != 2 or not len(codes_VP):
            raise ValueError(f"no codes of items: {codes_VP.dtype} of shape {codes_VP.shape}")
        self.codes_VP = np.ascontiguousarray(codes_VP)

    def scores(self, partial_PC: np.ndarray) -> np.ndarray:
        """Returns scores_V, -inf for the padding.

        Args:
            partial_PC: float32, what each code of each part adds to a score.

        Raises:
            ValueError: it is of another type, or not of the parts that items have codes of.
        """
        expected = (self.codes_VP.shape[1], NUM_CODES)
        if partial_PC.dtype != np.float32 or partial_PC.shape != expected:
            # Compiled code would read what is not there.
            raise ValueError(
                f"partial scores are {partial_PC.dtype} of shape {partial_PC.shape}, not float32 "
                f"of shape {expected}"
            )
        scores_V = np.empty(len(self.codes_VP), np.float32)
        _sum_parts(self.codes_VP, np.ascontiguousarray(partial_PC), scores_V)
        scores_V[0] = -np.inf
        return scores_V


# Without fastmath, for which the compiler gathers vectors, and that is slower.
@numba.njit("void(uint8[:, ::1], float32[:, ::1], float32[::1])", nogil=True)
def _sum_parts(codes_VP, partial_PC, scores_V):
    for item in range(len(codes_VP)):
        score = np.float32(0)
        for part in range(codes_VP.shape[1]):
            score += partial_PC[part, codes_VP[item, part]]
        scores_V[item] = score
