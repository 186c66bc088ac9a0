"""Values worked out by hand, and properties."""

import math

import pytest
import torch
from torch import Tensor

from recsys.distill import losses
from recsys.losses import LEFT_OUT

LN2, LN3 = math.log(2), math.log(3)


def test_reverse_kl_by_hand():
    student_NK = torch.tensor([[LN3, 0.0]])  # 3/4, 1/4
    teacher_NK = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert losses.reverse_kl(student_NK, teacher_NK, 1.0).tolist() == pytest.approx([expected])
    doubled = losses.reverse_kl(2 * student_NK, 2 * teacher_NK + 5, 2.0)
    assert doubled.tolist() == pytest.approx([4 * expected])
    assert losses.reverse_kl(student_NK, student_NK + 7, 3.0).item() == pytest.approx(0, abs=1e-5)


def test_the_binary_form_by_hand():
    student_NK = torch.tensor([[LN3, -LN3, LEFT_OUT]])  # sigmoids 3/4, 1/4, 0
    hard = losses.binary(student_NK, torch.tensor([[1.0, 0.0, 0.0]]), num_items=1)
    assert hard.tolist() == pytest.approx([-2 * math.log(0.75)])
    soft = losses.binary(student_NK, torch.tensor([[0.5, 0.2, 0.0]]), num_items=1)
    expected = -(0.5 * math.log(0.75) + 0.5 * math.log(0.25))
    expected -= 0.2 * math.log(0.25) + 0.8 * math.log(0.75)
    assert soft.tolist() == pytest.approx([expected])
    # Of nine items each has a ninth of the odds: 3/9 and 1/27.
    of_nine = losses.binary(student_NK, torch.tensor([[1.0, 0.0, 0.0]]), num_items=9)
    assert of_nine.tolist() == pytest.approx([math.log(4) + math.log(28 / 27)])


def test_ranking_by_hand():
    weights = [math.exp(-k / losses.RANK_DECAY) for k in range(3)]
    expected = (weights[0] * math.log(4 / 3) + sum(weights[1:]) * LN2) / sum(weights)
    found = losses.ranking(torch.tensor([[LN3, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([expected])


def test_the_likelihood_of_a_list_by_hand():
    student_NK = torch.tensor([[0.0, LN2]])  # 1 and 2: first the 1 of both, then the 2 alone
    assert losses.relaxed_ranking(student_NK).tolist() == pytest.approx([LN3 / 2])
    tail_NM = torch.tensor([[0.0, LN3, LEFT_OUT]])  # 1, 3 and nothing
    expected = (math.log(3 + 4) + math.log((2 + 4) / 2)) / 2
    assert losses.relaxed_ranking(student_NK, tail_NM).tolist() == pytest.approx([expected])


def test_the_order_of_the_tail_does_not_matter():
    student_NK, tail_NM = torch.randn(3, 5), torch.randn(3, 7)
    torch.testing.assert_close(
        losses.relaxed_ranking(student_NK, tail_NM),
        losses.relaxed_ranking(student_NK, tail_NM.flip(1)),
    )


def test_the_order_of_positions_by_hand():
    """Two items share each of three positions; the first item's are 1/2, 3/4 and 1/5 of them."""
    teacher_NI = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 4.0]]).log()
    student_NI = torch.tensor([[1.0, 1.0], [1.0, 2.0], [3.0, 2.0]]).log()  # 1/2, 1/3, 3/5
    best_is_second = -math.log((1 / 3) / (1 / 2 + 1 / 3 + 3 / 5))
    best_is_third = -math.log((2 / 5) / (1 / 2 + 2 / 3 + 2 / 5))
    found_I = losses.item_ranking(student_NI, teacher_NI, 1)
    torch.testing.assert_close(found_I, torch.tensor([best_is_second, best_is_third]))


def test_what_a_softmax_leaves_free_does_not_change_the_order_of_positions():
    student_NI, teacher_NI = torch.randn(9, 4), torch.randn(9, 4)
    found_I = losses.item_ranking(student_NI, teacher_NI, 9)
    moved = (scores + torch.randn(9, 1) for scores in (student_NI, teacher_NI))
    torch.testing.assert_close(losses.item_ranking(*moved, 9), found_I)
    best_I = losses.item_ranking(3 * teacher_NI, teacher_NI, 9)
    assert (best_I < losses.item_ranking(-3 * teacher_NI, teacher_NI, 9)).all()


def test_items_that_take_no_part_at_a_position_are_not_ranked_there():
    student_NI, teacher_NI = torch.randn(9, 4), torch.randn(9, 4)
    teacher_NI[2, 1] = teacher_NI[5, 3] = LEFT_OUT
    found_I = losses.item_ranking(student_NI, teacher_NI, 7)
    student_NI[2, 1], student_NI[5, 3] = 9.0, -9.0
    torch.testing.assert_close(losses.item_ranking(student_NI, teacher_NI, 7), found_I)
    of_nine_I = losses.item_ranking(student_NI[:, [1]], teacher_NI[:, [1]], 7)
    kept = [0, 1, 3, 4, 5, 6, 7, 8]  # positions where the second item does
    alone_I = losses.item_ranking(student_NI[kept][:, [1]], teacher_NI[kept][:, [1]], 7)
    torch.testing.assert_close(of_nine_I, alone_I)


def test_the_union_by_hand():
    student_NK, teacher_NK = torch.tensor([[0.0]]), torch.tensor([[math.log(0.6)]])
    student_best_NJ = torch.tensor([[LN3, 0.0]])  # the second is the teacher's own
    known_NJ, rest_N = torch.tensor([[False, True]]), torch.tensor([math.log(0.2)])
    found = losses.union(student_NK, teacher_NK, student_best_NJ, known_NJ, rest_N)
    # Labels 3/4 and 1/4, the student's shares 1/4 and 3/4.
    assert found.tolist() == pytest.approx([-(0.75 * math.log(0.25) + 0.25 * math.log(0.75))])


def test_decoupled_is_plain_kl_if_the_others_weigh_what_the_teacher_leaves_them():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 6, generator=generator) for _ in range(2))
    p, q = teacher.softmax(-1), student.softmax(-1)
    found = losses.decoupled(
        student[:, :1],
        teacher[:, :1],
        student[:, 1:],
        teacher[:, 1:],
        temperature=1.0,
        others_weight=float(1 - p[0, 0]),
    )
    torch.testing.assert_close(found, (p * (p / q).log()).sum(-1))


def test_decoupled_leaves_out_what_is_masked():
    student_NK, teacher_NK = torch.randn(2, 4), torch.randn(2, 4)
    settings = {"temperature": 2.0, "others_weight": 3.0}
    target = (torch.randn(2, 1), torch.randn(2, 1))
    masked = [torch.cat([x, torch.full((2, 1), LEFT_OUT)], dim=1) for x in (student_NK, teacher_NK)]
    torch.testing.assert_close(
        losses.decoupled(*target, *masked, **settings),
        losses.decoupled(*target, student_NK, teacher_NK, **settings),
    )


def test_a_hint_misses_nothing_of_a_linear_map_and_all_of_what_is_apart():
    states_ND = torch.randn(200, 4)
    assert losses.hint(states_ND, states_ND @ torch.randn(4, 9)).item() < 1e-3
    apart_NE = torch.eye(2).repeat(8, 1)
    states_ND = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]).repeat(4, 1)
    assert losses.hint(states_ND, apart_NE).item() == pytest.approx(1, abs=1e-3)


def test_contrast_is_least_where_states_are_linear_maps_of_the_teachers():
    teacher_NE = torch.randn(64, 6)
    alike = losses.contrast(teacher_NE @ torch.randn(6, 6), teacher_NE).mean()
    apart = losses.contrast(torch.randn(64, 6), teacher_NE).mean()
    assert alike < 1 < apart


@pytest.mark.parametrize("loss", [losses.hint, losses.contrast])
def test_projections_are_found_in_32_bits_under_autocast(loss):
    """Equations are not solved in fewer."""
    states_ND, teacher_NE = torch.randn(200, 4), torch.randn(200, 9)
    expected = loss(states_ND, teacher_NE)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(states_ND, teacher_NE)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_relations_by_hand():
    vectors_ID = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # cosine 0
    teacher_IE = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])  # cosine 1
    assert losses.relation(vectors_ID, teacher_IE).item() == pytest.approx(2 / 4)
    turned_ID = vectors_ID @ torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert losses.relation(vectors_ID, turned_ID).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: losses.reverse_kl(s, t, 2.0),
        lambda s, t: losses.binary(s, t.softmax(-1), num_items=7),
        lambda s, _: losses.ranking(s),
        lambda s, _: losses.relaxed_ranking(s[:, :3], s[:, 3:]),
        lambda s, t: losses.union(
            s[:, :3], t[:, :3].log_softmax(-1), s[:, 3:], s[:, 3:] > 5, t[:, 0] - 9
        ),
        lambda s, t: losses.decoupled(
            s[:, :1], t[:, :1], s[:, 1:], t[:, 1:], temperature=1.5, others_weight=2.0
        ),
        lambda s, t: losses.item_ranking(s, t, 3),
        lambda s, t: losses.item_ranking(s, t, 8),  # all positions, and none in the tail
        losses.hint,
        losses.contrast,
        losses.relation,
    ],
)
def test_gradients_are_those_of_finite_differences(loss):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    student.requires_grad_()

    def total(values: Tensor) -> Tensor:
        return loss(values, teacher).sum()

    assert torch.autograd.gradcheck(total, student)
