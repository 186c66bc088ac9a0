"""What a training step minimises. The loop takes any of these; distillation brings its own."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.data.batches import Batch
from recsys.losses import softmax_cross_entropy
from recsys.models.interface import SequenceModel


class TensorBatch(NamedTuple):
    """The arrays of a `Batch` as tensors."""

    items_BL: Tensor
    targets_BL: Tensor
    positions_BL: Tensor
    segments_BL: Tensor
    rows_BL: Tensor


class Objective(Protocol):
    """A loss over one batch."""

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        """Returns the loss summed over the batch's targets."""
        ...


def to_tensors(batch: Batch, device: torch.device) -> TensorBatch:
    """Returns the batch as tensors on `device`; without copying, if that is the processor."""
    return TensorBatch(*(torch.from_numpy(array).to(device) for array in batch))


def next_item(model: SequenceModel, batch: TensorBatch) -> Tensor:
    """Returns the summed cross-entropy of the next item at every position."""
    states_BLD = model.encode(batch.items_BL, batch.positions_BL, batch.segments_BL).float()
    return softmax_cross_entropy(
        states_BLD.flatten(0, 1), model.item_table(), batch.targets_BL.flatten()
    )
