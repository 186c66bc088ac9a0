import math

import pytest
import torch
from torch.nn import functional

from recsys import losses
from recsys.train.config import has_compiler

LOG = math.log
COMPILED = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")),
]


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
        torch.tensor([[0.75, 0.25]]),
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
    teacher_NK = torch.randn(num_positions, top_k, generator=generator).softmax(dim=-1)
    return states_ND, table_VD, targets_N, items_NK, teacher_NK


def test_temperature_softens_both_sides_and_keeps_the_scale():
    states_ND, table_VD, targets_N, items_NK, teacher_NK = _random()
    loss = losses.hard_and_soft_cross_entropy(
        states_ND, table_VD, targets_N, items_NK, teacher_NK, soft_weight=1.0, temperature=2.0
    )
    logs = (states_ND @ table_VD.T / 2).log_softmax(dim=-1).gather(1, items_NK)
    expected = -4 * (teacher_NK * logs).sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("fused", COMPILED)
def test_chunks_change_neither_loss_nor_gradient(fused, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 7)
    states_ND, table_VD, targets_N, items_NK, teacher_NK = _random()
    states_ND.requires_grad_()
    table_VD.requires_grad_()
    targets_N[::3] = losses.PADDING
    settings = {"soft_weight": 0.3, "temperature": 2.0}
    logits_NV = states_ND @ table_VD.T
    hard = functional.cross_entropy(
        logits_NV, targets_N, reduction="sum", ignore_index=losses.PADDING
    )
    soft_NK = teacher_NK * (logits_NV / 2).log_softmax(dim=-1).gather(1, items_NK)
    everywhere = functional.cross_entropy(logits_NV, targets_N, reduction="sum")
    with losses.compiled(fused):
        pairs = [
            (losses.softmax_cross_entropy(states_ND, table_VD, targets_N), hard),
            (
                losses.hard_and_soft_cross_entropy(
                    states_ND, table_VD, targets_N, items_NK, teacher_NK, **settings
                ),
                0.7 * everywhere - 0.3 * 4 * soft_NK.sum(),
            ),
        ]
    for chunked, plain in pairs:
        torch.testing.assert_close(chunked, plain)
        ours, expected = (
            torch.autograd.grad(loss * 3, (states_ND, table_VD), retain_graph=True)
            for loss in (chunked, plain)
        )
        torch.testing.assert_close(ours, expected)


def test_items_left_out_are_as_good_as_not_in_the_table_unless_they_are_labels(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 7)
    states_ND, table_VD, targets_N, items_NK, teacher_NK = _random()
    states_ND.requires_grad_()
    table_VD.requires_grad_()
    left_out_NM = torch.randint(0, 30, (50, 6), generator=torch.Generator().manual_seed(1))
    left_out_NM[:, 0] = targets_N
    for labels_NK in (targets_N[:, None], torch.cat([targets_N[:, None], items_NK], dim=1)):
        left_out_NV = torch.zeros(50, 30, dtype=torch.bool).scatter(1, left_out_NM, True)
        left_out_NV.scatter_(1, labels_NK, False)
        logs_NV = (states_ND @ table_VD.T).masked_fill(left_out_NV, -torch.inf).log_softmax(dim=-1)
        plain = -logs_NV.gather(1, targets_N[:, None]).sum()
        if labels_NK.shape[1] == 1:
            ours = losses.softmax_cross_entropy(states_ND, table_VD, targets_N, left_out_NM)
        else:
            plain = 0.4 * plain - 0.6 * (teacher_NK * logs_NV.gather(1, items_NK)).sum()
            ours = losses.hard_and_soft_cross_entropy(
                states_ND,
                table_VD,
                targets_N,
                items_NK,
                teacher_NK,
                left_out_NM=left_out_NM,
                soft_weight=0.6,
                temperature=1.0,
            )
        torch.testing.assert_close(ours, plain)
        found, expected = (
            torch.autograd.grad(loss, (states_ND, table_VD), retain_graph=True)
            for loss in (ours, plain)
        )
        torch.testing.assert_close(found, expected)


def test_products_in_bfloat16_change_little():
    states_ND, table_VD, targets_N, _, _ = _random()
    states_ND.requires_grad_()
    exact = losses.softmax_cross_entropy(states_ND, table_VD, targets_N)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses.softmax_cross_entropy(states_ND, table_VD, targets_N)
    assert rounded != exact
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)
    ours, expected = (torch.autograd.grad(loss, states_ND)[0] for loss in (rounded, exact))
    torch.testing.assert_close(ours, expected, rtol=0.1, atol=0.1)


def test_no_positions_have_no_loss_and_gradients_of_zero():
    states_ND, table_VD, targets_N, _, _ = _random(num_positions=0)
    table_VD.requires_grad_()
    loss = losses.softmax_cross_entropy(states_ND, table_VD, targets_N)
    loss.backward()
    assert loss == 0
    assert table_VD.grad is not None
    assert not table_VD.grad.any()


def test_smoothed_labels_are_a_mixture_with_the_uniform_distribution():
    states_ND, table_VD, targets_N, _, _ = _random()
    share = 0.1
    loss = losses.softmax_cross_entropy(states_ND, table_VD, targets_N) + share * losses.smoothing(
        states_ND, table_VD, targets_N, table_VD[targets_N]
    )
    logs_NV = (states_ND @ table_VD.T).log_softmax(-1)
    labels_NV = functional.one_hot(targets_N, len(table_VD)) * (1 - share)
    labels_NV[:, 1:] += share / (len(table_VD) - 1)
    torch.testing.assert_close(loss, -(labels_NV * logs_NV).sum())


def test_sampled_softmax_by_hand():
    # Scores: target ln 3, of 4 draws one of ln 2 (probability 1/4), two of 0 (1/2), which have one
    # column that counts, and the target itself, left out. Corrected: 2/(4/4) and 1/(4/2 / 2).
    sample = losses.Sample(
        torch.tensor([[[LOG(3)]]]),
        torch.tensor([[LOG(2)], [0.0], [0.0], [LOG(3)]]),
        losses.log_correction(
            torch.tensor([0.25, 0.5, 0.5, 0.25], dtype=torch.float64), torch.tensor([1, 2, 0, 1])
        ),
    )
    loss = losses.sampled_softmax(torch.ones(1, 1), sample, torch.tensor([[4, 0]]))
    assert loss.item() == pytest.approx(LOG((3 + 2 + 1) / 3))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_sample_estimates_the_sum_over_the_catalogue_without_bias(temperature):
    states_ND, table_VD, _, _, _ = _random(num_positions=1, num_items=6)
    probability_V = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.15, 0.25])

    def sum_of(drawn_M):
        times_M = torch.tensor([2, 0] if drawn_M[0] == drawn_M[1] else [1, 1])
        correction_M = losses.log_correction(probability_V[drawn_M], times_M)
        sample = losses.Sample(table_VD[[2]][None], table_VD[drawn_M], correction_M)
        left_out_NM = torch.where(drawn_M == 2, torch.tensor([1, 2]), 0)[None]
        label = losses.SoftLabels(torch.tensor([[0]]), torch.ones(1, 1), temperature)
        loss = losses.cross_entropy(states_ND, sample, [label], left_out_NM)
        return (loss + (states_ND @ table_VD[2])[0] / temperature).exp()

    draws = torch.cartesian_prod(*[torch.arange(1, 6)] * 2)
    expected = sum(sum_of(draw) * probability_V[draw].prod() for draw in draws)
    catalogue = (states_ND @ table_VD[1:].T / temperature).exp().sum()
    torch.testing.assert_close(expected, catalogue)


@pytest.mark.parametrize("fused", COMPILED)
def test_a_sample_has_the_gradient_of_the_softmax_written_out(fused, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 7)
    states_ND, table_VD, targets_N, items_NK, teacher_NK = _random()
    drawn_M = torch.tensor([3, 9, 17, 20])
    correction_M = torch.tensor([0.5, -1.0, 0.0, 2.0])
    columns_NK = torch.arange(1, 6).expand(len(targets_N), -1)
    left_out_NM = torch.tensor([[0, 8]]).repeat(len(targets_N), 1)
    own_NJ = torch.cat([targets_N[:, None], items_NK], dim=1)
    states_ND.requires_grad_()
    table_VD.requires_grad_()
    own_NJD = table_VD[own_NJ]
    with losses.compiled(fused):
        sampled = losses.hard_and_soft_cross_entropy(
            states_ND,
            losses.Sample(own_NJD, table_VD[drawn_M], correction_M),
            torch.zeros_like(targets_N),
            columns_NK,
            teacher_NK,
            left_out_NM=left_out_NM,
            soft_weight=0.3,
            temperature=2.0,
        )
    scores_NC = torch.cat(
        [(own_NJD @ states_ND[..., None])[..., 0], states_ND @ table_VD[drawn_M].T], dim=1
    )
    counts_C = torch.arange(10) != 8  # of 6 own ones and 4 drawn, one is left out
    correction_C = functional.pad(correction_M, (6, 0))[counts_C]
    scores_NC = scores_NC[:, counts_C]
    hard = -(scores_NC - correction_C).log_softmax(dim=-1)[:, 0].sum()
    soft = -(teacher_NK * (scores_NC / 2 - correction_C).log_softmax(dim=-1)[:, 1:6]).sum()
    expected = 0.7 * hard + 0.3 * 4 * soft
    torch.testing.assert_close(sampled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(sampled, (states_ND, table_VD), retain_graph=True),
        torch.autograd.grad(expected, (states_ND, table_VD)),
    )


@pytest.mark.parametrize(("calibration", "power"), [(0.0, 1.0), (1.0, 0.5), (0.5, 0.75)])
def test_gbce_by_hand(calibration, power):
    # Of 5 items 2 are drawn: a = 1/2. Odds are 3 b/2 and b/2; the first draw is the target.
    loss = losses.gbce(
        torch.ones(1, 1),
        torch.tensor([[LOG(3)]]),
        torch.tensor([[LOG(3)], [0.0]]),
        torch.tensor([[0, 1]]),
        num_items=5,
        calibration=calibration,
    )
    odds = 3 * power / 2
    expected = -power * LOG(odds / (1 + odds)) - LOG(1 / (1 + power / 2))
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_leaves_scores_where_they_start_but_for_what_tells_items_apart(calibration):
    states_ND = torch.zeros(1, 1, requires_grad=True)
    vectors_MD = torch.ones(20, 1)  # all alike: there is nothing to learn
    times_NM = torch.ones(1, 20)
    loss = losses.gbce(
        states_ND, torch.ones(1, 1), vectors_MD, times_NM, num_items=100, calibration=calibration
    )
    loss.backward()
    assert states_ND.grad.item() == pytest.approx(0, abs=1e-6)
