"""Codes of 4 or 8 bits for the rows of a matrix, with a scale for every block of a row."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Stores linear maps and the item table in fewer bits in the serving graph."""

    bits: Literal[16, 8, 4] = 8
    """Bits of a weight: 16 for half precision, 8 or 4 for integers that share scales."""

    def __post_init__(self) -> None:
        if self.bits not in (16, 8, 4):
            raise ValueError(f"bits must be 16, 8 or 4, not {self.bits}")


def quantize(rows_NK: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 codes_NK and float16 scales, (N, blocks): rows = codes * scales, nearly.

    The largest value of a block has the code that is furthest from zero, -8 or -128, whatever its
    sign, by a scale of either sign: 4 bits then err a fifth less than with codes from -7 to 7.

    Args:
        block: neighbours in a row that share a scale; the last ones of a row may be fewer.
    """
    limit = 2 ** (bits - 1)
    num_rows, width = rows_NK.shape
    padded = np.pad(rows_NK.astype(np.float32), ((0, 0), (0, -width % block)))
    blocks = padded.reshape(num_rows, -1, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = (largest / -limit).astype(np.float16)
    scales[scales == 0] = 1
    codes = np.clip(np.rint(blocks / scales.astype(np.float32)), -limit, limit - 1)
    return codes.astype(np.int8).reshape(num_rows, -1)[:, :width], scales[..., 0]


def to_bytes(codes_NK: np.ndarray, bits: int) -> np.ndarray:
    """Returns the codes as bytes: from 0 up, and two to a byte, the first one low, if of 4 bits."""
    codes_NK = (codes_NK + np.int16(2 ** (bits - 1))).astype(np.uint8)
    if bits == 8:
        return codes_NK
    even = np.pad(codes_NK, ((0, 0), (0, codes_NK.shape[1] % 2)))
    return even[:, ::2] | even[:, 1::2] << 4
