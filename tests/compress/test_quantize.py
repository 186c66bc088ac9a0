"""Codes of few bits, worked out by hand."""

import numpy as np
import pytest
import torch

from recsys.compress import PruneFeedForward, compress
from recsys.compress.graph import serving_graph
from recsys.compress.quantize import Quantize, quantize, to_bytes
from recsys.evaluate.engine import OnnxModel
from recsys.models import TransformerConfig, build
from recsys.models.gru import GRUConfig
from recsys.models.interface import torch_scorer
from recsys.models.rounding import keep_weights, round_weights


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


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("item_rank", [None, 20])
def test_a_model_in_training_scores_as_the_graph_that_stores_it(bits, item_rank, tmp_path):
    config = TransformerConfig(
        width=24,
        num_heads=2,
        head_width=8,
        feed_forward_width=40,
        max_length=9,
        item_rank=item_rank,
    )
    model = build(config, 31)
    weights = {name: w.numpy().copy() for name, w in model.state_dict().items()}
    path = tmp_path / "model.onnx"
    path.write_bytes(
        serving_graph(config, weights, {8: "int8", 4: "int4"}[bits]).SerializeToString()
    )
    histories = [np.array([3, 1, 4, 1, 5]), np.array([9]), np.arange(1, 12)]
    expected_BV = OnnxModel(path).scores(histories)[:, 1:]
    round_weights(model, bits)
    found_BV = torch_scorer(model)(histories)[:, 1:]
    # The graph's product rounds states to 8 bits, too.
    assert np.abs(found_BV - expected_BV).max() < 0.02 * np.abs(expected_BV).max()
    keep_weights(model)
    assert all((weights[name] == w.numpy()).all() for name, w in model.state_dict().items())


def test_gradients_pass_the_rounding():
    model = build(TransformerConfig(width=8, num_heads=1, head_width=8, max_length=5), 12)
    round_weights(model, 4)
    model.item_vectors(torch.tensor([3, 5])).sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "item_embedding" in name]
    assert gradients[0][[3, 5]].eq(1).all()
    assert gradients[0].sum() == 16


def test_recovery_is_of_weights_that_are_rounded_and_ends_with_whole_ones():
    model = build(TransformerConfig(width=8, num_heads=1, head_width=8, max_length=5), 12)
    asked = []

    def recover(model, step, bits):
        asked.append((step, bits))
        return model

    recipe = (PruneFeedForward(keep=8, recover_epochs=1), Quantize(bits=4, recover_epochs=2))
    _, precision = compress(model, recipe, histories=[np.array([1, 2])], recover=recover)
    assert (asked, precision) == ([(recipe[0], None), (recipe[1], 4)], "int4")
    with pytest.raises(ValueError, match="half precision loses nothing"):
        Quantize(bits=16, recover_epochs=1)


def test_recurrent_models_are_not_trained_with_rounded_weights():
    with pytest.raises(ValueError, match=r"leave \+epochs out"):
        round_weights(build(GRUConfig(width=8, hidden_width=8), 12), 4)


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits must be 16, 8 or 4, not 3"):
        Quantize(bits=3)
