"""Losses as pure functions of tensors. All return sums, so that workers can add them up."""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 2048  # training positions whose scores over the catalogue are in memory at a time
KEPT_SCORES = 64 * 2**20  # scores that may be kept for the backward pass, instead of made again
PADDING = 0


def softmax_cross_entropy(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Returns the summed cross-entropy of a softmax over the catalogue; target 0 counts nothing.

    torch's chunked form: scores of all N positions are never in memory together. The padding item
    takes part in the normaliser with the score that its zero row gives.
    """
    return functional.linear_cross_entropy(
        states_ND,
        table_VD,
        targets_N,
        reduction="sum",
        ignore_index=PADDING,
        options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK),
    )


def hard_and_soft_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    teacher_items_NK: Tensor,
    teacher_scores_NK: Tensor,
    *,
    soft_weight: float,
    temperature: float,
) -> Tensor:
    """Returns (1 - w) hard + w T^2 soft, summed over positions; scores are computed once for both.

    Hinton et al., arXiv 1503.02531. Hard is the cross-entropy of the target; soft that of the
    teacher's distribution over its K best items, softened by T and renormalised, against the
    student's over the whole catalogue, softened by the same T. The factor T^2 keeps the gradient's
    scale whatever the temperature.
    """
    keep = len(states_ND) * len(table_VD) <= KEPT_SCORES
    total = states_ND.new_zeros(())
    # At least once: a worker whose rows are all padding still has gradients, of zero, to add.
    for at in range(0, max(len(states_ND), 1), CHUNK):
        part = slice(at, at + CHUNK)
        teacher = (teacher_items_NK[part], teacher_scores_NK[part])
        arguments = (states_ND[part], table_VD, targets_N[part], *teacher, soft_weight, temperature)
        if keep:
            total = total + _hard_and_soft(*arguments)
        else:
            total = total + checkpoint(_hard_and_soft, *arguments, use_reentrant=False)
    return total


def _hard_and_soft(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    items_NK: Tensor,
    scores_NK: Tensor,
    soft_weight: float,
    temperature: float,
) -> Tensor:
    logits_NV = states_ND @ table_VD.T
    normalizer_N = logits_NV.logsumexp(dim=-1)
    hard = (normalizer_N - logits_NV.gather(1, targets_N[:, None])[:, 0]).sum()
    teacher_NK = (scores_NK / temperature).softmax(dim=-1)
    expected_N = (teacher_NK * logits_NV.gather(1, items_NK)).sum(dim=-1) / temperature
    if temperature != 1:
        normalizer_N = (logits_NV / temperature).logsumexp(dim=-1)
    soft = (normalizer_N - expected_N).sum() * temperature**2
    return (1 - soft_weight) * hard + soft_weight * soft
