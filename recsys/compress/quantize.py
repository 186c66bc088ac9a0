"""Codes of 4 or 8 bits for the rows of a matrix, with a scale for every block of a row."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from recsys.models import rounding


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Stores linear maps and the item table in fewer bits in the serving graph."""

    bits: Literal[16, 8, 4] = 8
    """Bits of a weight: 16 for half precision, 8 or 4 for integers that share scales."""
    recover_epochs: int = 0
    """Epochs of training with weights that are rounded as they will be stored."""

    def __post_init__(self) -> None:
        if self.bits not in (16, 8, 4):
            raise ValueError(f"bits must be 16, 8 or 4, not {self.bits}")
        if self.bits == 16 and self.recover_epochs:
            raise ValueError("half precision loses nothing to recover from: leave +epochs out")


def quantize(rows_NK: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes and scales, as `recsys.models.rounding.quantize` does."""
    codes_NK, scales = rounding.quantize(torch.from_numpy(rows_NK), bits, block)
    return codes_NK.numpy(), scales.numpy()


def to_bytes(codes_NK: np.ndarray, bits: int) -> np.ndarray:
    """Returns the codes as bytes: from 0 up, and two to a byte, the first one low, if of 4 bits."""
    codes_NK = (codes_NK + np.int16(2 ** (bits - 1))).astype(np.uint8)
    if bits == 8:
        return codes_NK
    even = np.pad(codes_NK, ((0, 0), (0, codes_NK.shape[1] % 2)))
    return even[:, ::2] | even[:, 1::2] << 4
