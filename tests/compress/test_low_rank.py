"""Factors that are best for the outputs, and tables that are best for the items that count."""

import numpy as np
import torch

from recsys.compress.low_rank import FactorizeItems, factorize_items, factors
from recsys.models.transformer import Transformer, TransformerConfig


def test_factors_serve_the_inputs_that_occur():
    # Inputs lie on the second axis only: one rank is enough, though the first column is larger.
    weight_OI = torch.tensor([[10.0, 1.0], [0.0, 2.0]])
    up_OR, down_RI = factors(weight_OI, torch.diag(torch.tensor([0.0, 1.0])), rank=1)
    x_I = torch.tensor([0.0, 3.0])
    torch.testing.assert_close(up_OR @ (down_RI @ x_I), torch.tensor([3.0, 6.0]), atol=0.02, rtol=0)


def test_factors_of_white_inputs_are_the_truncated_svd():
    torch.manual_seed(0)
    weight_OI = torch.randn(6, 5)
    up_OR, down_RI = factors(weight_OI, torch.eye(5), rank=2)
    left, singular, right = torch.linalg.svd(weight_OI, full_matrices=False)
    expected = left[:, :2] * singular[:2] @ right[:2]
    torch.testing.assert_close(up_OR @ down_RI, expected, atol=1e-5, rtol=1e-4)


def test_popular_items_are_kept_best():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=8, num_layers=1, head_width=4), 50)
    histories = [np.full(500, item, dtype=np.int32) for item in (3, 4)]

    def errors(step: FactorizeItems) -> torch.Tensor:
        smaller = factorize_items(step, model, histories)
        return (smaller.item_table() - model.item_table()).norm(dim=1)

    plain_V = errors(FactorizeItems(rank=2))
    weighted_V = errors(FactorizeItems(rank=2, by_popularity=True))
    assert weighted_V[[3, 4]].max() < 0.1 * plain_V[[3, 4]].max()
    assert weighted_V[0] == plain_V[0] == 0
