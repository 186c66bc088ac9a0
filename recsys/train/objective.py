"""What a training step minimises. The loop takes any of these; distillation brings its own."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.config import require_at_least
from recsys.data.batches import Batch
from recsys.data.sequences import Dataset
from recsys.losses import (
    PADDING,
    SharedTable,
    gbce,
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


class Objective(Protocol):
    """A loss over one batch."""

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        """Returns the loss summed over the batch's targets."""
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


def seen_among(inputs: PackedRows, items_M: Tensor) -> Tensor:
    """Returns seen_BLM: whether each of some items is among `seen_items`."""
    equal_BLM = inputs.items_BL[..., None] == items_M
    return (causal_within(inputs.segments_BL).float() @ equal_BLM.float()).bool()


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
    def probability_V(self) -> Tensor:
        """The probability of each item to be drawn; one more on the counts, so that all can be."""
        power = self.config.popularity_power if self.config.kind == "sampled-softmax" else 0.0
        weights_V = (Dataset.open(self.dataset).item_counts_V + 1.0) ** power
        weights_V[PADDING] = 0
        return torch.from_numpy(weights_V / weights_V.sum())

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        counted_BL = batch.targets_BL != PADDING
        states_ND = model.encode(batch.inputs).float()[counted_BL]
        targets_N = batch.targets_BL[counted_BL]
        if self.config.kind == "softmax":
            table_VD, share = model.item_table(), self.config.label_smoothing
            left_out_NM = (
                seen_items(batch.inputs)[counted_BL] if self.config.leave_out_seen else None
            )
            loss = softmax_cross_entropy(states_ND, table_VD, targets_N, left_out_NM)
            if not share:
                return loss
            if isinstance(table_VD, SharedTable):
                raise ValueError("label smoothing needs the whole table: leave it or sharded out")
            positives_ND = model.item_vectors(targets_N)
            return loss + share * smoothing(states_ND, table_VD, targets_N, positives_ND)
        positives_ND = model.item_vectors(targets_N)
        negatives_M = self._draw(self.config.num_negatives).to(targets_N.device)
        skipped_NM = negatives_M == targets_N[:, None]
        if self.config.leave_out_seen:
            skipped_NM |= seen_among(batch.inputs, negatives_M)[counted_BL]
        sample = (states_ND, positives_ND, model.item_vectors(negatives_M), skipped_NM)
        if self.config.kind == "sampled-softmax":
            log_probability_M = self.probability_V[negatives_M.cpu()].log().float()
            return sampled_softmax(*sample, log_probability_M.to(targets_N.device))
        num_items = len(self.probability_V) - 1
        return gbce(*sample, num_items=num_items, calibration=self.config.calibration)

    @cached_property
    def _cumulative_V(self) -> Tensor:
        return self.probability_V.cumsum(0)

    def _draw(self, count: int) -> Tensor:
        places_M = torch.rand(count, dtype=torch.float64) * self._cumulative_V[-1]
        return torch.searchsorted(self._cumulative_V, places_M, right=True)


def objective(config: LossConfig, dataset: Path) -> Objective:
    """Returns the objective of a loss on a dataset; the plain one where that is what is asked."""
    plain = config.kind == "softmax" and config.label_smoothing == 0 and config.leave_out_seen
    return next_item if plain else NextItem(config, dataset)
