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

    def to(self, device: torch.device) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


def torch_scorer(model: SequenceModel) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Returns a function from histories to scores_BV that runs `model` without dropout."""

    @torch.inference_mode()
    def score(histories: Sequence[np.ndarray]) -> np.ndarray:
        history_BL, length_B = pad_histories(histories, model.config.max_length)
        model.eval()
        table_VD = model.item_table()
        history_BL, length_B = (
            torch.from_numpy(array).to(table_VD.device) for array in (history_BL, length_B)
        )
        return (model.last_state(history_BL, length_B) @ table_VD.T).cpu().numpy()

    return score
