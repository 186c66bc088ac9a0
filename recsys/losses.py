"""Losses as pure functions of tensors. All return sums, so that workers can add them up."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache, reduce
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

CHUNK = 128  # training positions whose scores over the catalogue are in memory at a time
DEVICE_SCORES = 2**25  # the same on a GPU, which few positions would not fill, in scores
PADDING = 0
LEFT_OUT = -1e4  # a score whose exponential is zero, and which is finite in bfloat16


class SoftLabels(NamedTuple):
    """A distribution over a few items for each of N positions, and how much it counts."""

    items_NK: Tensor
    """Items, int64."""
    weights_NK: Tensor
    """Probabilities times the weight of the term; of a position that does not count, zeros."""
    temperature: float = 1.0
    """Divides the scores before their softmax."""


class Sample(NamedTuple):
    """Items that stand for the catalogue; it stands where table_VD does, its columns for items."""

    own_NJD: Tensor
    """Vectors of J items of each position's own, in the first columns of its scores."""
    drawn_MD: Tensor
    """Vectors of items drawn for all positions, in the columns after those."""
    correction_M: Tensor
    """What is taken from the drawn items' scores; see `log_correction`."""


@runtime_checkable
class SharedTable(Protocol):
    """A table whose rows are shared out to workers; it stands where table_VD does."""

    def __len__(self) -> int:
        """Returns the number of all rows, V."""
        ...

    def cross_entropy(
        self, states_ND: Tensor, labels: Sequence[SoftLabels], left_out_NM: Tensor | None = None
    ) -> Tensor:
        """Returns this worker's share of what `cross_entropy` returns."""
        ...


def softmax_cross_entropy(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, left_out_NM: Tensor | None = None
) -> Tensor:
    """Returns the summed cross-entropy of a softmax over the catalogue; target 0 counts nothing.

    The padding item takes part in the normaliser with the score that its row gives, unless it is
    among those that are left out.
    """
    counts_N1 = (targets_N != PADDING).to(states_ND.dtype)[:, None]
    labels = SoftLabels(targets_N[:, None], counts_N1)
    return cross_entropy(states_ND, table_VD, [labels], left_out_NM)


def hard_and_soft_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor | SharedTable | Sample,
    targets_N: Tensor,
    teacher_items_NK: Tensor,
    teacher_NK: Tensor,
    *,
    left_out_NM: Tensor | None = None,
    soft_weight: float | Tensor,
    hard_weight: float | Tensor | None = None,
    temperature: float,
) -> Tensor:
    """Returns (1 - w) hard + w T^2 soft, summed over positions; scores are computed once for both.

    Hinton et al., arXiv 1503.02531. Hard is the cross-entropy of the target; soft that of the
    teacher's distribution over K items, softened by T, against the student's over the whole
    catalogue or a sample of it, softened by the same T. The factor T^2 keeps the gradient's scale
    whatever the temperature.

    Args:
        table_VD: as for `cross_entropy`; by a sample, targets and items are columns.
        teacher_NK: the teacher's probabilities of its items, softened by T.
        soft_weight: w, for all positions or, as N1, for each.
        hard_weight: what stands for 1 - w, likewise; none for that.
    """
    zeros_N1 = torch.zeros_like(states_ND[:, :1])
    soft_weight_N1 = zeros_N1 + soft_weight
    hard_N1 = 1 - soft_weight_N1 if hard_weight is None else zeros_N1 + hard_weight
    soft_NK = teacher_NK * (soft_weight_N1 * temperature**2)
    if temperature != 1:
        hard = SoftLabels(targets_N[:, None], hard_N1)
        soft = SoftLabels(teacher_items_NK, soft_NK, temperature)
        return cross_entropy(states_ND, table_VD, [hard, soft], left_out_NM)
    items_NK = torch.cat([targets_N[:, None], teacher_items_NK], dim=1)
    labels = SoftLabels(items_NK, torch.cat([hard_N1, soft_NK], dim=1))
    return cross_entropy(states_ND, table_VD, [labels], left_out_NM)


def smoothing(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, positives_ND: Tensor
) -> Tensor:
    """Returns sum_n (score of the target - mean score of the catalogue); target 0 counts nothing.

    Cross-entropy plus e times this is the cross-entropy of labels smoothed by e (Szegedy et al.,
    arXiv 1512.00567): the normaliser is the same for all items, and a mean of scores is the score
    of the mean vector.

    Args:
        positives_ND: the table's rows of the targets.
    """
    apart_N = (states_ND * (positives_ND - table_VD[1:].mean(dim=0))).sum(dim=-1)
    return (apart_N * (targets_N != PADDING)).sum()


def log_correction(probability_M: Tensor, times_M: Tensor) -> Tensor:
    """Returns log(M q / c) for items that M draws have brought c times, q a draw's probability.

    Taken from their scores it makes the sum of exponentials over the sample estimate without bias
    the sum over the catalogue (Bengio and Senecal, 2008). An item drawn c times has one column
    that counts, the first; the others, with c = 0, are left out.

    Args:
        probability_M: q of the item of each column.
        times_M: c at an item's first column, 0 at the others.
    """
    expected_M = probability_M * len(probability_M)
    return (expected_M / times_M).log().clamp(max=-LEFT_OUT).float()


def sampled_softmax(states_ND: Tensor, sample: Sample, left_out_NL: Tensor | None = None) -> Tensor:
    """Returns the summed cross-entropy of a softmax over each position's target and a sample.

    The target is there whatever is drawn: it is not corrected, and left out of what is drawn
    (Khrylchenko et al., Correcting the LogQ Correction, arXiv 2507.09331).

    Args:
        sample: its own_NJD the targets, J = 1.
        left_out_NL: columns of drawn items that do not compete at a position. Column 0 is that of
            the target, which as a label always competes: it fills up shorter lists.
    """
    first_N1 = torch.zeros(len(states_ND), 1, dtype=torch.int64, device=states_ND.device)
    labels = SoftLabels(first_N1, torch.ones_like(first_N1, dtype=torch.float32))
    return cross_entropy(states_ND, sample, [labels], left_out_NL)


def gbce(
    states_ND: Tensor,
    positives_ND: Tensor,
    negatives_MD: Tensor,
    times_NM: Tensor,
    *,
    num_items: int,
    calibration: float,
) -> Tensor:
    """Returns generalised binary cross-entropy with M uniform negatives, summed over positions.

    Petrov and Macdonald, gSASRec, arXiv 2308.07192: -(b log s(positive) + sum log(1 -
    s(negative))), with b = a (t (1 - 1/a) + 1/a) and a = M / (V - 1), the share of the catalogue
    that is drawn: the power b undoes the overconfidence that comes with few negatives. t = 0 is
    plain binary cross-entropy, t = 1 gives calibrated probabilities.

    An item's odds are exp(score) b / M and not exp(score), which changes no order: a model that has
    learnt nothing, whose scores are 0, then has nothing to gain by moving all of them. Else pushing
    M negatives down is all that the first steps do, and items that are inputs, too, end up with one
    direction in common that drowns what tells them apart. (A prior as in the focal loss's, Lin et
    al., arXiv 1708.02002, section 3.3.)

    Args:
        positives_ND: vectors of the targets.
        times_NM: how often a negative counts at a position: as often as it was drawn, or never.
    """
    share = len(negatives_MD) / max(num_items - 1, 1)
    power = share * (calibration * (1 - 1 / share) + 1 / share)
    prior = math.log(power / len(negatives_MD))
    positive_N = (states_ND * positives_ND).sum(dim=-1).float() + prior
    negative_NM = logsigmoid(-(states_ND @ negatives_MD.T).float() - prior)
    return -power * logsigmoid(positive_N).sum() - (negative_NM * times_NM).sum()


def cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor | SharedTable | Sample,
    labels: Sequence[SoftLabels],
    left_out_NM: Tensor | None = None,
) -> Tensor:
    """Returns -sum_nk weight_nk log softmax(state_n table^T / T)_item_nk, summed over `labels`.

    Scores of all N positions are never in memory together: each chunk's gradient is taken while
    its scores are in cache (as in torch's linear_cross_entropy, which knows no soft labels). Under
    autocast the products run in its precision, softmax and sums in float32.

    Args:
        table_VD: the table, this worker's part of a shared one, or a sample of it.
        left_out_NM: M items of each position that take no part in its softmax, but for its labels.
    """
    if isinstance(table_VD, SharedTable):
        return table_VD.cross_entropy(states_ND, labels, left_out_NM)
    if isinstance(table_VD, Sample):
        own_NJD, drawn_MD, correction_M = table_VD
        return _CrossEntropy.apply(states_ND, drawn_MD, labels, left_out_NM, own_NJD, correction_M)
    return _CrossEntropy.apply(states_ND, table_VD, labels, left_out_NM, None, None)


@contextlib.contextmanager
def compiled(on: bool = True) -> Iterator[None]:
    """Has torch.compile fuse what `cross_entropy` does to the scores of a chunk, if `on`."""
    before = _compiles.set(on)
    try:
        yield
    finally:
        _compiles.reset(before)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        table_VD: Tensor,
        labels: Sequence[SoftLabels],
        left_out_NM: Tensor | None,
        own_NJD: Tensor | None,
        correction_V: Tensor | None,
    ):
        device = states_ND.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else states_ND.dtype
        rounded_ND, rounded_VD = states_ND.to(dtype), table_VD.to(dtype)
        total = states_ND.new_zeros(())
        states_gradient_ND = torch.zeros_like(states_ND)
        # Summed in float32 where autocast has made the table: by a product of low rank, say.
        sums = torch.promote_types(table_VD.dtype, torch.float32)
        table_gradient_VD = torch.zeros_like(table_VD, dtype=sums)
        own = None if own_NJD is None or correction_V is None else _Own(own_NJD, correction_V)
        size = CHUNK if device == "cpu" else max(CHUNK, DEVICE_SCORES // len(table_VD))
        # The same memory for every chunk: where it fits, it stays in cache.
        memory_CV = rounded_ND.new_empty(min(size, len(states_ND)), len(table_VD))
        for at in range(0, len(states_ND), size):
            part = slice(at, at + size)
            scores_CV = memory_CV[: len(rounded_ND[part])]
            torch.mm(rounded_ND[part], rounded_VD.T, out=scores_CV)
            if own:
                scores_CV = own.join(states_ND, part, scores_CV)
            chunk = [SoftLabels(i[part], w[part], temperature) for i, w, temperature in labels]
            if left_out_NM is not None:
                leave_out(scores_CV, left_out_NM[part], chunk)
            # The last chunk, and what a GPU takes at once, has another size every time: not worth a
            # kernel of its own.
            fused = _compiles.get() and len(scores_CV) == CHUNK
            loss, gradient_CV = _loss_and_gradient(scores_CV, chunk, own, fused)
            total += loss
            if own:
                gradient_CV, states_gradient_ND[part] = own.part(states_ND, part, gradient_CV)
            gradient_CV = gradient_CV.to(dtype)
            _add_product(states_gradient_ND[part], gradient_CV, rounded_VD)
            _add_product(table_gradient_VD, gradient_CV.T, rounded_ND[part])
        own_gradient_NJD = own.gradient_NJD if own else None
        ctx.save_for_backward(states_gradient_ND, table_gradient_VD, own_gradient_NJD)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        states_ND, table_VD, own_NJD = (
            None if gradient is None else gradient * gradients[0] for gradient in ctx.saved_tensors
        )
        return states_ND, table_VD, None, None, own_NJD, None


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left @ right to `sums`, in one operation where all are of one type."""
    if left.dtype == sums.dtype:
        torch.addmm(sums, left, right, out=sums)
    else:
        sums += left @ right


class _Own:
    """The items of a `Sample` that each position has for itself, and their gradient."""

    def __init__(self, own_NJD: Tensor, correction_M: Tensor):
        self.own_NJD, self.num_own = own_NJD, own_NJD.shape[1]
        self.correction_S = pad(correction_M, (self.num_own, 0))  # S = J + M
        self.gradient_NJD = torch.empty_like(own_NJD)

    def join(self, states_ND: Tensor, chunk: slice, drawn_CM: Tensor) -> Tensor:
        """Returns a chunk's scores of them and of the drawn items, CS."""
        # Not by einsum, which autocast would round: a target's score is all of its loss.
        own_CJ = (states_ND[chunk, None] * self.own_NJD[chunk]).sum(dim=-1)
        return torch.cat([own_CJ, drawn_CM], dim=1)

    def correct(self, scores_CS: Tensor, temperature: float) -> Tensor:
        """Returns scores whose T-th part is a softened score less its correction."""
        return scores_CS - temperature * self.correction_S

    def part(self, states_ND: Tensor, chunk: slice, gradient_CS: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps their gradient; returns that of the drawn items' scores, CM, and their states'."""
        own_CJ, drawn_CM = gradient_CS.tensor_split([self.num_own], dim=1)
        self.gradient_NJD[chunk] = own_CJ[:, :, None] * states_ND[chunk, None]
        return drawn_CM, torch.einsum("cj,cjd->cd", own_CJ, self.own_NJD[chunk].float())


def leave_out(scores_CV: Tensor, items_CM: Tensor, labels: Sequence[SoftLabels]) -> None:
    """Takes items out of each position's softmax, in place, but for those of its labels."""
    first_C1 = torch.arange(len(scores_CV), device=scores_CV.device)[:, None] * scores_CV.shape[1]
    labels_CK = first_C1 + torch.cat([label.items_NK for label in labels], dim=1)
    # By place in the whole: on a CPU torch's scatter into bfloat16 takes ten times as long.
    flat_S = scores_CV.view(-1)
    kept_CK = flat_S.take(labels_CK)
    flat_S.index_fill_(0, (first_C1 + items_CM).flatten(), LEFT_OUT)
    flat_S.put_(labels_CK, kept_CK)


def _loss_and_gradient(
    scores_CV: Tensor, labels: Sequence[SoftLabels], own: "_Own | None", fused: bool
) -> tuple[Tensor, Tensor]:
    """Returns a chunk's loss, and its derivative by the scores; overwrites these."""
    normalize = _compiled_normalize() if fused else _normalize
    losses, gradients_CV = [], []
    for label in labels:
        if own:
            overwritten_CV = own.correct(scores_CV, label.temperature)
        else:  # the last one may have them
            overwritten_CV = scores_CV if label is labels[-1] else scores_CV.clone()
        loss, gradient_CV = normalize(overwritten_CV, label)
        gradient_CV.scatter_add_(1, label.items_NK, label.weights_NK / -label.temperature)
        losses.append(loss)
        gradients_CV.append(gradient_CV)
    return reduce(Tensor.add, losses), reduce(Tensor.add_, gradients_CV)


def _normalize(scores_CV: Tensor, labels: SoftLabels) -> tuple[Tensor, Tensor]:
    """Returns a chunk's loss and, of its derivative by the scores, softmax sum_k w_k / T.

    It overwrites float32 scores by the derivative. The exponential of a score is taken once: a
    log_softmax and its exp would take it twice.
    """
    items_CK, weights_CK, temperature = labels
    scores_CV = scores_CV.float()
    if temperature != 1:
        scores_CV.div_(temperature)
    found_CK = scores_CV.gather(1, items_CK)
    highest_C1 = scores_CV.amax(dim=1, keepdim=True)
    exponentials_CV = scores_CV.sub_(highest_C1).exp_()
    sums_C1 = exponentials_CV.sum(dim=1, keepdim=True)
    logs_CK = found_CK - highest_C1 - sums_C1.log()
    shares_C1 = weights_CK.sum(dim=1, keepdim=True) / (sums_C1 * temperature)
    return -(weights_CK * logs_CK).sum(), exponentials_CV.mul_(shares_C1)


@cache
def _compiled_normalize() -> Callable[[Tensor, SoftLabels], tuple[Tensor, Tensor]]:
    # Once asked for: the compiler takes two seconds to import.
    return torch.compile(_normalize, dynamic=False)


_compiles = ContextVar("_compiles", default=False)
