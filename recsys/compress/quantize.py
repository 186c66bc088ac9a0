"""Symmetric 8-bit codes of weight matrices: one scale for each row or column."""

from dataclasses import dataclass

import numpy as np

ZERO_POINT = 128
LARGEST_CODE = 127


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Stores linear maps and the item table in 8 bits in the serving graph."""


def quantize(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 codes and float32 scales: weight = (codes - 128) * scales, nearly.

    Unsigned codes around 128, since products of unsigned and signed bytes saturate on processors
    without VNNI instructions, and are then plainly wrong.

    Args:
        axis: the axis that is summed over in a product; every vector along it has one scale.
    """
    largest = np.abs(weight).max(axis=axis, keepdims=True).astype(np.float32)
    scales = np.where(largest > 0, largest / LARGEST_CODE, 1).astype(np.float32)
    codes = np.rint(weight / scales) + ZERO_POINT
    return codes.astype(np.uint8), scales


def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the float32 weights that the codes stand for."""
    return (codes.astype(np.float32) - ZERO_POINT) * scales
