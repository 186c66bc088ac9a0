import math

import pytest
import torch
from torch.nn import functional

from recsys import losses

LOG = math.log


def test_softmax_cross_entropy_by_hand():
    # Scores of the items are 0, 0, ln 2: probabilities 1/4, 1/4, 1/2.
    table_VD = torch.tensor([[0.0], [0.0], [LOG(2)]])
    states_ND = torch.ones(3, 1)
    loss = losses.softmax_cross_entropy(states_ND, table_VD, torch.tensor([2, 1, 0]))
    assert loss.item() == pytest.approx(LOG(2) + LOG(4))  # target 0 counts nothing


def test_hard_and_soft_by_hand():
    # The student's probabilities: 1/4, 1/4, 1/2. The teacher's over items 1 and 2: 1/4 and 3/4.
    table_VD = torch.tensor([[0.0], [0.0], [LOG(2)]])
    loss = losses.hard_and_soft_cross_entropy(
        torch.ones(1, 1),
        table_VD,
        torch.tensor([1]),
        torch.tensor([[2, 1]]),
        torch.tensor([[LOG(3), 0.0]]),
        soft_weight=0.25,
        temperature=1.0,
    )
    soft = 0.25 * LOG(4) + 0.75 * LOG(2)
    assert loss.item() == pytest.approx(0.75 * LOG(4) + 0.25 * soft)


def _random(num_positions=50, num_items=30, width=8, top_k=5):
    generator = torch.Generator().manual_seed(0)
    states_ND = torch.randn(num_positions, width, generator=generator)
    table_VD = torch.randn(num_items, width, generator=generator)
    targets_N = torch.randint(1, num_items, (num_positions,), generator=generator)
    items_NK = torch.rand(num_positions, num_items, generator=generator).argsort()[:, :top_k]
    scores_NK = torch.randn(num_positions, top_k, generator=generator)
    return states_ND, table_VD, targets_N, items_NK, scores_NK


def test_temperature_softens_both_sides_and_keeps_the_scale():
    states_ND, table_VD, targets_N, items_NK, scores_NK = _random()
    loss = losses.hard_and_soft_cross_entropy(
        states_ND, table_VD, targets_N, items_NK, scores_NK, soft_weight=1.0, temperature=2.0
    )
    logs = (states_ND @ table_VD.T / 2).log_softmax(dim=-1).gather(1, items_NK)
    expected = -4 * ((scores_NK / 2).softmax(dim=-1) * logs).sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kept", [0, losses.KEPT_SCORES])
def test_chunks_change_neither_loss_nor_gradient(monkeypatch, kept):
    monkeypatch.setattr(losses, "CHUNK", 7)
    monkeypatch.setattr(losses, "KEPT_SCORES", kept)
    states_ND, table_VD, targets_N, items_NK, scores_NK = _random()
    states_ND.requires_grad_()
    hard = losses.hard_and_soft_cross_entropy(
        states_ND, table_VD, targets_N, items_NK, scores_NK, soft_weight=0.0, temperature=1.0
    )
    plain = functional.cross_entropy(states_ND @ table_VD.T, targets_N, reduction="sum")
    chunked = losses.softmax_cross_entropy(states_ND, table_VD, targets_N)
    torch.testing.assert_close(hard, plain)
    torch.testing.assert_close(chunked, plain)
    gradients = [torch.autograd.grad(loss, states_ND)[0] for loss in (hard, plain, chunked)]
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[2], gradients[1])
