"""What a training step minimises. The loop takes any of these; distillation brings its own."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from recsys.config import require_at_least
from recsys.data.batches import Batch
from recsys.data.sequences import Dataset
from recsys.losses import (
    PADDING,
    Sample,
    SharedTable,
    gbce,
    log_correction,
    sampled_softmax,
    smoothing,
    softmax_cross_entropy,
)
from recsys.models.interface import PackedRows, SequenceModel
from recsys.models.layers import causal_within


class TensorBatch(NamedTuple):
    """The arrays of a `Batch` as tensors: what the model reads, and what it is asked."""

    inputs: PackedRows
    targets_BL: Tensor
    rows_BL: Tensor
    progress: float = 0.0
    """Share of all steps that is done."""
    found: Any = None
    """What `Repeatable.look_up` has found, for every position of the rows."""


class Objective(Protocol):
    """A loss over one batch."""

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        """Returns the loss summed over the batch's targets."""
        ...


@runtime_checkable
class Repeatable(Protocol):
    """An `Objective` that can be the same operations on tensors of the same shapes in every step,
    so that a GPU repeats one (`recsys.train.repeat`). It is not told of progress then."""

    @property
    def repeats(self) -> bool:
        """Whether it is as it is set, given batches that `look_up` has been through."""
        ...

    def look_up(self, batch: TensorBatch) -> TensorBatch:
        """Returns a batch of the processor with all that is read for it, as `found`."""
        ...


def to_tensors(batch: Batch, device: torch.device) -> TensorBatch:
    """Returns the batch as tensors on `device`; without copying, if that is the processor."""
    arrays = {name: torch.from_numpy(a).to(device) for name, a in batch._asdict().items()}
    inputs = PackedRows(**{name: arrays[name] for name in PackedRows._fields})
    return TensorBatch(inputs, arrays["targets_BL"], arrays["rows_BL"])


def seen_items(inputs: PackedRows) -> Tensor:
    """Returns seen_BLL: at every position the items up to it of its own sequence, and padding."""
    before_BLL = causal_within(inputs.segments_BL)
    return torch.where(before_BLL, inputs.items_BL[:, None, :], PADDING)


class Drawn(NamedTuple):
    """M items that were drawn, with replacement, to compete at every position."""

    items_M: Tensor
    """In ascending order."""
    times_M: Tensor
    """How often an item was drawn, at its first place; 0 at its others."""
    correction_M: Tensor
    """As `log_correction` returns it."""
    num_items: int
    """Items of the catalogue."""

    def place(self, items: Tensor) -> Tensor:
        """Returns the first place of each of some items, counted from 1; 0 where it is none."""
        places = torch.searchsorted(self.items_M, items).clamp(max=len(self.items_M) - 1)
        return torch.where(self.items_M[places] == items, places + 1, 0)


class Sampler:
    """Draws items by their count in training to a power; one more on the counts, so that all can
    be drawn."""

    def __init__(self, dataset: Path, power: float):
        weights_V = (Dataset.open(dataset).item_counts_V + 1.0) ** power
        weights_V[PADDING] = 0
        self.probability_V = torch.from_numpy(weights_V / weights_V.sum())
        self.cumulative_V = self.probability_V.cumsum(0)

    def draw(self, count: int, device: torch.device) -> Drawn:
        """Returns `count` items, by torch's random state."""
        sums_M = torch.rand(count, dtype=torch.float64).sort().values * self.cumulative_V[-1]
        items_M = torch.searchsorted(self.cumulative_V, sums_M, right=True)
        times_M = torch.bincount(torch.searchsorted(items_M, items_M), minlength=count)
        correction_M = log_correction(self.probability_V[items_M], times_M)
        found = (x.to(device) for x in (items_M, times_M, correction_M))
        return Drawn(*found, num_items=len(self.probability_V) - 1)


def sampled(
    model: SequenceModel,
    drawn: Drawn,
    targets_N: Tensor,
    items_NK: Tensor,
    seen_NL: Tensor | None,
) -> tuple[Sample, Tensor, Tensor]:
    """Returns what stands for the catalogue: a position's target, in column 0, its other labels and
    what is drawn for all; the columns of the other labels, NK; and those to leave out, NW, of which
    0 is none.

    No item counts twice: what is drawn is left out where it is the position's own, and a label that
    is the target has the target's column.

    Args:
        items_NK: labels besides the target, each another item or the target.
        seen_NL: items that take no part.
    """
    own_NJ = torch.cat([targets_N[:, None], items_NK], dim=1)
    items_U, which = torch.cat([own_NJ.flatten(), drawn.items_M]).unique(return_inverse=True)
    # Looked up once each and at once, which is what it costs where workers share the table.
    vectors = embedding(which, model.item_vectors(items_U))
    own_ND, drawn_MD = vectors.split([own_NJ.numel(), len(drawn.items_M)])
    sample = Sample(own_ND.unflatten(0, own_NJ.shape), drawn_MD, drawn.correction_M)
    place_NW = drawn.place(own_NJ if seen_NL is None else torch.cat([own_NJ, seen_NL], dim=1))
    columns_NW = torch.where(place_NW > 0, place_NW + items_NK.shape[1], 0)
    columns_K = torch.arange(1, own_NJ.shape[1], device=items_NK.device)
    is_target_NK = items_NK == targets_N[:, None]
    twice_NK = torch.where(is_target_NK, columns_K, 0)
    labels_NK = torch.where(is_target_NK, 0, columns_K)
    return sample, labels_NK, torch.cat([columns_NW, twice_NK], dim=1)


def next_item(model: SequenceModel, batch: TensorBatch) -> Tensor:
    """Returns the summed cross-entropy of the next item at every position, among items that are new
    to the user there: the others are never recommended."""
    states_BLD = model.encode(batch.inputs).float()
    return softmax_cross_entropy(
        states_BLD.flatten(0, 1),
        model.item_table(),
        batch.targets_BL.flatten(),
        seen_items(batch.inputs).flatten(0, 1),
    )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How far the model is from the next item of the log."""

    kind: Literal["softmax", "sampled-softmax", "gbce"] = "softmax"
    """Cross-entropy over the whole catalogue, or against a sample of it, or a binary one against a
    uniform sample; samples are for catalogues of a hundred thousand items and more."""
    num_negatives: int = 1024
    """Items in a sample, which all positions of a batch share."""
    popularity_power: float = 0.5
    """A sampled softmax draws items by their count in training to this power; 0 is uniformly."""
    calibration: float = 0.75
    """t of gbce: 0 is plain binary cross-entropy, 1 gives calibrated probabilities."""
    leave_out_seen: bool = True
    """Whether an item competes with those only that are new to the user, as what is recommended
    is. Scores of seen items then mean nothing: leave them in for a service that recommends them
    again."""
    label_smoothing: float = 0.0
    """Share of the label that a softmax over the catalogue spreads evenly over it, seen items
    included."""

    def __post_init__(self) -> None:
        require_at_least(1, num_negatives=self.num_negatives)
        for name in ("popularity_power", "calibration", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        if self.label_smoothing and self.kind != "softmax":
            raise ValueError(
                f"labels of {self.kind} are not smoothed: leave out one of --loss.kind and "
                "--loss.label-smoothing"
            )
        if self.label_smoothing and self.leave_out_seen:
            raise ValueError(
                "labels are smoothed over seen items, too: add --loss.no-leave-out-seen"
            )


class NextItem:
    """An `Objective` that learns the log's next items, by any of the losses."""

    def __init__(self, config: LossConfig, dataset: Path):
        # Absolute: workers start in a directory of their own.
        self.config, self.dataset = config, dataset.resolve()

    @cached_property
    def _sampler(self) -> Sampler:
        is_softmax = self.config.kind == "sampled-softmax"
        return Sampler(self.dataset, self.config.popularity_power if is_softmax else 0.0)

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        counted_BL = batch.targets_BL != PADDING
        states_ND = model.encode(batch.inputs).float()[counted_BL]
        targets_N = batch.targets_BL[counted_BL]
        seen_NL = seen_items(batch.inputs)[counted_BL] if self.config.leave_out_seen else None
        if self.config.kind == "softmax":
            table_VD, share = model.item_table(), self.config.label_smoothing
            loss = softmax_cross_entropy(states_ND, table_VD, targets_N, seen_NL)
            if not share:
                return loss
            if isinstance(table_VD, SharedTable):
                raise ValueError("label smoothing needs the whole table: leave it or sharded out")
            positives_ND = model.item_vectors(targets_N)
            return loss + share * smoothing(states_ND, table_VD, targets_N, positives_ND)
        drawn = self._sampler.draw(self.config.num_negatives, targets_N.device)
        no_others_NK = targets_N.new_empty(len(targets_N), 0)
        sample, _, left_out_NW = sampled(model, drawn, targets_N, no_others_NK, seen_NL)
        if self.config.kind == "sampled-softmax":
            return sampled_softmax(states_ND, sample, left_out_NW)
        times_NM = pad(drawn.times_M.float(), (1, 0)).repeat(len(targets_N), 1)
        times_NM = times_NM.scatter_(1, left_out_NW, 0)[:, 1:]
        return gbce(
            states_ND,
            sample.own_NJD[:, 0],
            sample.drawn_MD,
            times_NM,
            num_items=drawn.num_items,
            calibration=self.config.calibration,
        )


def objective(config: LossConfig, dataset: Path) -> Objective:
    """Returns the objective of a loss on a dataset; the plain one where that is what is asked."""
    plain = config.kind == "softmax" and config.label_smoothing == 0 and config.leave_out_seen
    return next_item if plain else NextItem(config, dataset)
