"""Statistics over real positions only, padding left out."""

import numpy as np
import torch

from recsys.compress.calibration import calibrate
from recsys.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(width=8, num_layers=2, head_width=4, max_length=6)


def test_moments_are_means_over_the_items_of_all_histories():
    torch.manual_seed(0)
    model = Transformer(CONFIG, 20)
    histories = [np.array([3, 4, 5]), np.zeros(0, dtype=np.int64), np.array([6])]
    moment_II = calibrate(model, histories).moments["blocks.0.query"]
    vectors_ND = model.embedding_norm(model.item_embedding(torch.tensor([3, 4, 5, 6])))
    x_ND = model.blocks[0].norm_1(vectors_ND).double()
    torch.testing.assert_close(moment_II, x_ND.T @ x_ND / 4, atol=1e-6, rtol=1e-5)


def test_a_block_that_does_nothing_has_no_influence():
    torch.manual_seed(0)
    model = Transformer(CONFIG, 20)
    with torch.no_grad():
        model.blocks[0].output.weight.zero_()
        model.blocks[0].contract.weight.zero_()
    first, second = calibrate(model, [np.arange(1, 10)]).influence
    assert abs(first) < 1e-6 < second
