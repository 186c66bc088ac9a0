"""Factors that are best for the outputs."""

import torch

from recsys.compress.low_rank import factors


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
