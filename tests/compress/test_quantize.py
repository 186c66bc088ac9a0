"""Codes of few bits, worked out by hand."""

import numpy as np
import pytest

from recsys.compress.quantize import Quantize, quantize, to_bytes


def test_codes_and_scales_by_hand():
    rows = np.array([[0.0, 1.28, -0.64, 0.5], [0.0, 0.0, 0.0, 0.0], [-128.0, 2.0, 127.0, 64.4]])
    codes, scales = quantize(rows, bits=8, block=4)
    np.testing.assert_array_equal(codes, [[0, -128, 64, -50], [0, 0, 0, 0], [-128, 2, 127, 64]])
    np.testing.assert_allclose(scales, [[-0.01], [1.0], [1.0]], rtol=1e-3)
    assert (codes.dtype, scales.dtype) == (np.int8, np.float16)


def test_blocks_have_scales_of_their_own_and_the_last_may_be_short():
    rows = np.array([[8.0, -4.0, 0.5, 2.0, 16.0, 1.0, -3.0]])
    codes, scales = quantize(rows, bits=4, block=3)
    np.testing.assert_array_equal(scales, [[-1, -2, 0.375]])
    np.testing.assert_array_equal(codes, [[-8, 4, 0, -1, -8, 0, -8]])


def test_four_bits_are_two_to_a_byte_the_first_one_low():
    codes = np.array([[-8, 7, 0]], dtype=np.int8)
    np.testing.assert_array_equal(to_bytes(codes, 4), [[0xF0, 0x08]])
    np.testing.assert_array_equal(to_bytes(np.array([[-128, 127]], np.int8), 8), [[0, 255]])


@pytest.mark.parametrize("bits", [8, 4])
def test_error_is_at_most_half_a_step_but_for_what_is_cut_off(bits):
    rows = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    codes, scales = quantize(rows, bits=bits, block=8)
    steps = np.repeat(scales.astype(np.float32), 8, axis=1)
    errors = np.abs(codes * steps - rows) / np.abs(steps)
    inside = codes < 2 ** (bits - 1) - 1
    assert errors[inside & (codes > -(2 ** (bits - 1)))].max() <= 0.501
    assert errors.max() <= 1.1


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits must be 16, 8 or 4, not 3"):
        Quantize(bits=3)
