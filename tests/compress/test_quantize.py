"""8-bit codes, worked out by hand."""

import numpy as np

from recsys.compress.quantize import dequantize, quantize


def test_codes_and_scales_by_hand():
    weight = np.array([[0.0, 1.27, -0.635], [0.0, 0.0, 0.0], [-254.0, 2.0, 127.0]])
    codes, scales = quantize(weight, axis=1)
    np.testing.assert_array_equal(codes, [[128, 255, 64], [128, 128, 128], [1, 129, 192]])
    np.testing.assert_allclose(scales, [[0.01], [1.0], [2.0]], rtol=1e-6)


def test_error_is_at_most_half_a_step():
    weight = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    for axis in (0, 1):
        codes, scales = quantize(weight, axis=axis)
        assert (np.abs(dequantize(codes, scales) - weight) <= scales * 0.501).all()
