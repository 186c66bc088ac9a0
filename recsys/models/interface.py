"""What every sequence model can do, and scoring with it.

Tensor names end in their dimensions: B users in the batch (or packed rows), L history length,
D width, V items with the padding row 0, N candidates or training positions, K list length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batches import pad_histories


@runtime_checkable
class SequenceModel(Protocol):
    """A model that turns histories into states which score items by a dot product."""

    config: Any

    def encode(self, items_BL: Tensor, positions_BL: Tensor, segments_BL: Tensor) -> Tensor:
        """Returns states_BLD of packed rows."""
        ...

    def last_state(self, history_BL: Tensor, length_B: Tensor) -> Tensor:
        """Returns state_BD after the last item of right-padded histories."""
        ...

    def item_table(self) -> Tensor:
        """Returns table_VD."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def torch_scorer(model: SequenceModel) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Returns a function from histories to scores_BV that runs `model` as it is, without dropout.

    The item table is computed once.
    """
    model.eval()
    with torch.inference_mode():
        table_VD = model.item_table()

    @torch.inference_mode()
    def score(histories: Sequence[np.ndarray]) -> np.ndarray:
        history_BL, length_B = pad_histories(histories, model.config.max_length)
        model.eval()
        state_BD = model.last_state(torch.from_numpy(history_BL), torch.from_numpy(length_B))
        return (state_BD @ table_VD.T).numpy()

    return score
