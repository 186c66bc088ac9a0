"""What flows through a model on real histories: the statistics that compression steps go by."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.batches import pad_histories
from recsys.models.interface import PackedRows
from recsys.models.layers import LowRankLinear
from recsys.models.transformer import Transformer

BATCH_SIZE = 64


class Calibration(NamedTuple):
    """Statistics over every position of the calibration histories."""

    moments: dict[str, Tensor]
    """For every linear map of the blocks, by name: the mean of x x^T over its inputs x, float64."""
    influence: list[float]
    """For every block the mean of 1 - cos(input, output): how much it changes its input."""


def calibrate(model: Transformer, histories: Sequence[np.ndarray]) -> Calibration:
    """Returns the statistics of `model` on `histories`.

    Raises:
        ValueError: there is no history with an item in it.
    """
    filled = [history for history in histories if len(history)]
    if not filled:
        raise ValueError("calibration needs at least one history that is not empty")
    sums: dict[str, Tensor] = {}
    influence = torch.zeros(len(model.blocks))
    valid = torch.empty(0, dtype=torch.bool)

    def add_moment(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x_ND = inputs[0][valid].double()
            sums[name] = sums.get(name, 0) + x_ND.T @ x_ND

        return hook

    def add_influence(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            similar = torch.cosine_similarity(inputs[0][valid], output[valid], dim=-1)
            influence[layer] += (1 - similar).sum()

        return hook

    handles = [m.register_forward_pre_hook(add_moment(n)) for n, m in linear_maps(model)]
    handles += [b.register_forward_hook(add_influence(i)) for i, b in enumerate(model.blocks)]
    count = 0
    try:
        for start in range(0, len(filled), BATCH_SIZE):
            batch = filled[start : start + BATCH_SIZE]
            items, length = map(torch.from_numpy, pad_histories(batch, model.config.max_length))
            valid = torch.arange(items.shape[1])[None] < length[:, None]
            _encode(model, items, valid)
            count += int(length.sum())
    finally:
        for handle in handles:
            handle.remove()
    moments = {name: moment / count for name, moment in sums.items()}
    return Calibration(moments, (influence / count).tolist())


def linear_maps(model: Transformer) -> Iterator[tuple[str, nn.Linear | LowRankLinear]]:
    """Yields the linear maps of the blocks with their names; a factored one counts as one map."""
    for name, module in model.blocks.named_modules(prefix="blocks"):
        is_factor = name.endswith((".down", ".up"))
        if isinstance(module, nn.Linear | LowRankLinear) and not is_factor:
            yield name, module


def item_counts(histories: Sequence[np.ndarray], num_rows: int) -> Tensor:
    """Returns how often each item stands in `histories`, and one more."""
    items = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    return torch.from_numpy(np.bincount(items, minlength=num_rows) + 1.0)


@torch.inference_mode()
def _encode(model: Transformer, items_BL: Tensor, valid_BL: Tensor) -> None:
    model.eval()
    positions_BL = torch.arange(items_BL.shape[1]).expand_as(items_BL)
    no_times = torch.zeros_like(items_BL)
    model.encode(PackedRows(items_BL, positions_BL, valid_BL.long(), no_times, no_times))
