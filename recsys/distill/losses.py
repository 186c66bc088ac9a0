"""Ways of listening to a teacher, as pure functions.

They return the loss of each of N positions, but for `item_ranking`, that of each item, and `hint`
and `relation`, which return one value for all. K items of each position are the teacher's best, in
its order; M more are a sample of all others. Those that do not count, as they are among the best or
seen by the user, are masked: their scores are `LEFT_OUT`. The cross-entropy over the whole
catalogue, of hard labels and of `kl`, is in `recsys.losses`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from recsys.losses import LEFT_OUT

RANK_DECAY = 10.0  # ranks over which the weight of `ranking` falls to 1 / e
RIDGE = 1e-3  # of the projection, as a share of the mean squared state


def reverse_kl(student_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(student || teacher), both renormalised to the listed items.

    It makes the student leave out what the teacher does not do, where the forward one makes it do
    all that the teacher does (Gu et al., MiniLLM, arXiv 2306.08543).

    Args:
        teacher_NK: the teacher's scores or log-probabilities; they may differ by a constant.
    """
    student_NK = (student_NK / temperature).log_softmax(dim=-1)
    teacher_NK = (teacher_NK / temperature).log_softmax(dim=-1)
    return temperature**2 * _kl(student_NK, teacher_NK)


def binary(student_NK: Tensor, labels_NK: Tensor, *, num_items: int) -> Tensor:
    """Returns -sum_k (y log p + (1 - y) log(1 - p)) with y hard or soft, p by its own odds.

    Each item is a question of its own, as in a classifier with several labels; masked items, whose
    score is `LEFT_OUT` and whose label is 0, add nothing.

    An item's odds are exp(score) / num_items, so that a student that has learnt nothing, whose
    scores are 0, begins where all items are about as likely as they are; else pushing all of them
    down is what it learns first, and well (as in `recsys.losses.gbce`).
    """
    logits_NK = student_NK - math.log(num_items)
    losses_NK = functional.binary_cross_entropy_with_logits(logits_NK, labels_NK, reduction="none")
    return losses_NK.sum(dim=-1)


def ranking(student_NK: Tensor) -> Tensor:
    """Returns ranking distillation: the teacher's best items are positives, weighted by rank.

    -sum_k w_k log sigmoid(score_k), w falling exponentially and adding up to 1 (Tang and Wang,
    Ranking Distillation, KDD 2018, equations 6 and 8, without the weights by discrepancy).
    """
    ranks_K = torch.arange(student_NK.shape[1], device=student_NK.device)
    weights_K = (-ranks_K / RANK_DECAY).softmax(dim=0)
    logs_NK = functional.logsigmoid(student_NK).masked_fill(student_NK <= LEFT_OUT, 0)
    return -(weights_K * logs_NK).sum(dim=-1)


def relaxed_ranking(student_NK: Tensor, tail_NM: Tensor | None = None) -> Tensor:
    """Returns minus the log-likelihood of the teacher's order, per listed item.

    -1/K sum_k log(exp(s_k) / (sum_{i >= k} exp(s_i) + sum_m exp(t_m))): the Plackett-Luce model of
    a list (Xia et al., ListMLE, ICML 2008), relaxed by the tail, whose own order does not matter
    (Kang et al., DE-RRD, arXiv 2012.04357, equation 7).

    Args:
        tail_NM: the student's scores of items of the tail; none for the list alone.
    """
    remaining_NK = student_NK.flip(1).logcumsumexp(dim=1).flip(1)
    if tail_NM is not None:
        remaining_NK = torch.logaddexp(remaining_NK, tail_NM.logsumexp(dim=1, keepdim=True))
    return (remaining_NK - student_NK).masked_fill(student_NK <= LEFT_OUT, 0).mean(dim=-1)


def item_ranking(student_NI: Tensor, teacher_NI: Tensor, num_best: int) -> Tensor:
    """Returns for each of I items how unlikely the student makes the teacher's order of positions.

    The other side of `relaxed_ranking`: of N positions the `num_best` that an item suits best are
    its list, in the teacher's order, and the others its tail (Kang et al., Item-side Ranking
    Regularized Distillation, Information Sciences 580, 2021). A softmax leaves each position's
    scores free up to a constant, so that it is the shares among the I items that are ranked.

    Args:
        teacher_NI: `LEFT_OUT` where an item takes no part at a position.
    """
    left_out_NI = teacher_NI <= LEFT_OUT
    student_IN, teacher_IN = (
        scores.masked_fill(left_out_NI, LEFT_OUT)
        .log_softmax(dim=1)
        .masked_fill(left_out_NI, LEFT_OUT)
        .T
        for scores in (student_NI, teacher_NI)
    )
    ranked_IN = student_IN.gather(1, teacher_IN.argsort(dim=1, descending=True))
    return relaxed_ranking(ranked_IN[:, :num_best], ranked_IN[:, num_best:])


def union(
    student_NK: Tensor,
    teacher_NK: Tensor,
    student_best_NJ: Tensor,
    known_NJ: Tensor,
    rest_N: Tensor,
) -> Tensor:
    """Returns the cross-entropy on the union of the student's best items and the teacher's.

    On the teacher's best alone nothing tells the student which of its own favourites are wrong
    (Zhu et al., Rejuvenating Cross-Entropy Loss in Knowledge Distillation for Recommender Systems,
    arXiv 2509.20989). The teacher's probability of an item outside its own best is taken to be the
    mean of all such.

    Args:
        teacher_NK: the teacher's log-probabilities.
        student_best_NJ: the student's scores of its own best items.
        known_NJ: whether those are among the teacher's best, and so in the list already.
        rest_N: the teacher's mean log-probability outside its best.
    """
    others_NJ = rest_N[:, None].expand_as(student_best_NJ).masked_fill(known_NJ, LEFT_OUT)
    labels_NL = torch.cat([teacher_NK, others_NJ], dim=1).softmax(dim=-1)
    best_NJ = student_best_NJ.masked_fill(known_NJ, LEFT_OUT)
    logs_NL = torch.cat([student_NK, best_NJ], dim=1).log_softmax(dim=-1)
    return -(labels_NL * logs_NL).sum(dim=-1)


def decoupled(
    student_N1: Tensor,
    teacher_N1: Tensor,
    student_NK: Tensor,
    teacher_NK: Tensor,
    *,
    temperature: float,
    others_weight: float,
) -> Tensor:
    """Returns T^2 (KL of target against the rest + b KL among the rest), on the listed items.

    A sure teacher silences the second term in a plain KL, where it is weighted by 1 - p(target)
    (Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679, equation 7).

    Args:
        student_N1: scores of the log's target; teacher_N1 likewise.
        student_NK: scores of the others; `LEFT_OUT` where an item is the target.
        others_weight: b.
    """
    student, teacher = (
        torch.cat(pair, dim=1).div(temperature).log_softmax(dim=-1)
        for pair in ((student_N1, student_NK), (teacher_N1, teacher_NK))
    )
    split = [torch.stack([p[:, 0], p[:, 1:].logsumexp(dim=1)], dim=1) for p in (student, teacher)]
    others = [p[:, 1:].log_softmax(dim=-1) for p in (student, teacher)]
    return temperature**2 * (_kl(split[1], split[0]) + others_weight * _kl(others[1], others[0]))


def hint(states_ND: Tensor, teacher_NE: Tensor) -> Tensor:
    """Returns the share of the teacher's states that a linear map of the student's misses.

    FitNets (Romero et al., arXiv 1412.6550) trains a projection along; here it is the best one for
    the batch, by least squares, which a batch of more positions than the student is wide makes
    well posed.
    """
    missed_NE = _project(states_ND, teacher_NE) - teacher_NE
    return missed_NE.square().sum() / teacher_NE.square().sum()


def contrast(states_ND: Tensor, teacher_NE: Tensor, temperature: float = 0.1) -> Tensor:
    """Returns the cross-entropy of finding each state's teacher among those of the batch.

    InfoNCE over cosines of projected states (Tian et al., CRD, arXiv 1910.10699), the projection as
    in `hint`.
    """
    projected_NE = functional.normalize(_project(states_ND, teacher_NE), dim=-1)
    scores_NN = projected_NE @ functional.normalize(teacher_NE, dim=-1).T / temperature
    places_N = torch.arange(len(scores_NN), device=scores_NN.device)
    return functional.cross_entropy(scores_NN, places_N, reduction="none")


def relation(vectors_ID: Tensor, teacher_IE: Tensor) -> Tensor:
    """Returns the mean squared difference of cosines between I items, student's and teacher's.

    Whole neighbourhoods are kept, which a small space can hold, not coordinates, which it cannot
    (Kang et al., Topology Distillation, arXiv 2106.08700, the full form).
    """
    cosines = [
        normal @ normal.T for normal in (functional.normalize(v) for v in (vectors_ID, teacher_IE))
    ]
    return (cosines[0] - cosines[1]).square().mean()


def _kl(of: Tensor, to: Tensor) -> Tensor:
    """Returns KL(of || to) of each position, given logarithms."""
    return (of.exp() * (of - to)).sum(dim=-1)


def _project(states_ND: Tensor, teacher_NE: Tensor) -> Tensor:
    """Returns the linear map of the states that is nearest to the teacher's, with a small ridge.

    Whatever autocast says in 32 bits: in fewer, equations are not solved.
    """
    with torch.autocast(states_ND.device.type, enabled=False):
        moment_DD = states_ND.T @ states_ND
        ridge_D = RIDGE * moment_DD.diagonal().mean().expand(len(moment_DD))
        moment_DD = moment_DD + ridge_D.diag()
        return states_ND @ torch.linalg.solve(moment_DD, states_ND.T @ teacher_NE)
