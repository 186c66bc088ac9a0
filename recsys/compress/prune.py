"""Structured pruning: whole layers, heads and feed-forward units go, so that less is computed.

What goes is what matters least on calibration histories. For heads and feed-forward units the
weights that read the ones that stay are refitted by least squares, in closed form, to what the map
gave before (Hubara et al., arXiv 2102.05099, and its like).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from recsys.compress.calibration import calibrate
from recsys.models.gru import GRU
from recsys.models.transformer import Transformer

RIDGE = 1e-2

State = dict[str, Tensor]
Model = TypeVar("Model", bound=Transformer | GRU)


@dataclass(frozen=True, kw_only=True)
class PruneLayers:
    """Keeps the layers that change their input most."""

    keep: int
    """Number of layers that stay."""
    recover_epochs: int = 0
    """Epochs of training after the step."""


@dataclass(frozen=True, kw_only=True)
class PruneHeads:
    """Keeps in every layer the attention heads that add most to the residual stream."""

    keep: int
    """Number of heads that stay in each layer."""
    recover_epochs: int = 0
    """Epochs of training after the step."""


@dataclass(frozen=True, kw_only=True)
class PruneFeedForward:
    """Keeps in every layer the feed-forward units that add most to the residual stream."""

    keep: int
    """Width of each feed-forward network that stays."""
    recover_epochs: int = 0
    """Epochs of training after the step."""


def prune_layers(
    step: PruneLayers, model: Transformer, histories: Sequence[np.ndarray]
) -> Transformer:
    """Returns the model without its least influential layers.

    Influence is 1 - cos(input, output) of a block (Men et al., ShortGPT, arXiv 2403.03853).

    Raises:
        ValueError: the model has fewer layers than are to stay.
    """
    check_at_most("PruneLayers.keep", step.keep, model.config.num_layers, "layers")
    influence = torch.tensor(calibrate(model, histories).influence)
    kept = _largest(influence, step.keep).tolist()
    state: State = {}
    for name, weight in model.state_dict().items():
        block, _, rest = name.removeprefix("blocks.").partition(".")
        if not name.startswith("blocks."):
            state[name] = weight
        elif int(block) in kept:
            state[f"blocks.{kept.index(int(block))}.{rest}"] = weight
    return rebuilt(model, dataclasses.replace(model.config, num_layers=step.keep), state)


def prune_heads(
    step: PruneHeads, model: Transformer, histories: Sequence[np.ndarray]
) -> Transformer:
    """Returns the model with fewer heads in every layer.

    Raises:
        ValueError: the model has fewer heads than are to stay.
    """
    config = model.config
    check_at_most("PruneHeads.keep", step.keep, config.num_heads, "heads")

    def choose(energy_II: Tensor) -> Tensor:
        channels = torch.arange(len(energy_II)).view(config.num_heads, -1)
        energy = torch.stack([energy_II[head][:, head].sum() for head in channels])
        return channels[_largest(energy, step.keep)].flatten()

    smaller = dataclasses.replace(config, num_heads=step.keep)
    state = _prune_inner(model, histories, ("query", "key", "value"), "output", choose)
    return rebuilt(model, smaller, state)


def prune_feed_forward(
    step: PruneFeedForward, model: Transformer, histories: Sequence[np.ndarray]
) -> Transformer:
    """Returns the model with narrower feed-forward networks.

    Raises:
        ValueError: the feed-forward networks are narrower than what is to stay.
    """
    width = model.config.feed_forward_width
    check_at_most("PruneFeedForward.keep", step.keep, width, "feed-forward units")
    smaller = dataclasses.replace(model.config, feed_forward_width=step.keep)

    def choose(energy_II: Tensor) -> Tensor:
        return _largest(energy_II.diagonal(), step.keep)

    state = _prune_inner(model, histories, ("expand",), "contract", choose)
    return rebuilt(model, smaller, state)


def check_at_most(setting: str, value: int, available: int, what: str) -> None:
    """Raises a ValueError unless 1 <= value <= available."""
    if not 1 <= value <= available:
        raise ValueError(
            f"{setting} is {value}, but the model has {available} {what}: ask for 1 to {available}"
        )


def rebuilt(model: Model, config: Any, state: State) -> Model:
    """Returns a new model of `config` with a copy of the weights in `state`."""
    smaller = type(model)(config, len(model.item_table()))
    smaller.load_state_dict(state)
    smaller.eval()
    return smaller


def _prune_inner(
    model: Transformer,
    histories: Sequence[np.ndarray],
    producers: tuple[str, ...],
    consumer: str,
    choose: Callable[[Tensor], Tensor],
) -> State:
    """Returns the weights with only those channels between producers and consumer that `choose`
    keeps, given energy_II: the diagonal block of some channels sums to the mean squared norm of
    what they add to the residual stream."""
    moments = calibrate(model, histories).moments
    state = dict(model.state_dict())
    factored = model.config.linear_rank is not None
    up, down = (".up", ".down") if factored else ("", "")
    for layer in range(model.config.num_layers):
        block = f"blocks.{layer}."
        moment_II = moments[block + consumer]
        weight_OI = dense_weight(state, block + consumer).double()
        kept = choose(weight_OI.T @ weight_OI * moment_II)
        read = f"{block}{consumer}{down}.weight"
        state[read] = _refit(state[read], moment_II, kept)
        for producer in producers:
            written = f"{block}{producer}{up}.weight"
            state[written] = state[written][kept]
    return state


def dense_weight(state: State, name: str) -> Tensor:
    """Returns the weight_OI of a linear map, multiplied out if it is factored."""
    if f"{name}.weight" in state:
        return state[f"{name}.weight"]
    return state[f"{name}.up.weight"] @ state[f"{name}.down.weight"]


def _refit(weight_OI: Tensor, moment_II: Tensor, kept: Tensor) -> Tensor:
    """Returns the weights of the kept inputs that give nearest to what all inputs gave before.

    Least squares with a ridge towards the weights as they were: W_K + W_P C_PK (C_KK + r I)^-1,
    for K kept, P pruned and C the inputs' second moments.
    """
    pruned = torch.ones(len(moment_II), dtype=torch.bool)
    pruned[kept] = False
    weight = weight_OI.double()
    within, across = moment_II[kept][:, kept], moment_II[pruned][:, kept]
    ridge = RIDGE * within.diagonal().mean().clamp_min(1e-12)
    within = within + ridge * torch.eye(len(kept), dtype=torch.float64)
    correction = torch.linalg.solve(within, (weight[:, pruned] @ across).T).T
    return (weight[:, kept] + correction).to(weight_OI.dtype)


def _largest(values: Tensor, count: int) -> Tensor:
    """Returns the indexes of the largest values, in their order of position."""
    return values.topk(count).indices.sort().values
