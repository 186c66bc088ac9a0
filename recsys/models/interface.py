"""What every sequence model can do, and scoring with it.

Tensor names end in their dimensions: B users in the batch (or packed rows), L history length,
D width, V items with the padding row 0, N candidates or training positions, K list length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batches import pad_histories, pad_times


class PackedRows(NamedTuple):
    """Sequences one after the other in rows; what a model reads in training."""

    items_BL: Tensor
    """Item at each position; 0 is padding."""
    positions_BL: Tensor
    """Position of each item within its sequence."""
    segments_BL: Tensor
    """Which sequence of the row an item belongs to; 0 is padding."""
    times_BL: Tensor
    """Timestamp of each item."""
    next_times_BL: Tensor
    """Timestamp of the item to predict, for models on the track that is told it."""


@runtime_checkable
class SequenceModel(Protocol):
    """A model that turns histories into states which score items by a dot product."""

    config: Any

    def encode(self, rows: PackedRows) -> Tensor:
        """Returns states_BLD; a position sees itself and what precedes it in its own sequence."""
        ...

    def last_state(
        self, history_BL: Tensor, length_B: Tensor, times_BM: Tensor | None = None
    ) -> Tensor:
        """Returns state_BD after the last item of right-padded histories.

        Args:
            times_BM: for models that read them, the timestamps of the L items, shifted in a row to
                have that of the target right after that of the last item (M = L + 1).
        """
        ...

    def item_table(self) -> Tensor:
        """Returns table_VD; scores are state_BD @ table_VD.T."""
        ...

    def item_vectors(self, items: Tensor) -> Tensor:
        """Returns the table's rows of `items`, shape (*items, D), without making all others."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> Any: ...

    def to(self, device: torch.device) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def torch_scorer(model: SequenceModel) -> Callable[..., np.ndarray]:
    """Returns a `recsys.evaluate.ranking.Scorer` that runs `model` as it is, without dropout.

    The item table is computed once.
    """
    model.eval()
    with torch.inference_mode():
        table_VD = model.item_table()

    @torch.inference_mode()
    def score(
        histories: Sequence[np.ndarray], times: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        padded = pad_histories(histories, model.config.max_length)
        if times is not None:
            padded = (*padded, pad_times(times, model.config.max_length))
        model.eval()
        state_BD = model.last_state(*(torch.from_numpy(a).to(table_VD.device) for a in padded))
        return (state_BD @ table_VD.T).cpu().numpy()

    return score
