"""Structured pruning: whole layers, heads, feed-forward units, directions and positions go, so that
less is computed.

What goes is what matters least on calibration histories; of positions, the oldest. For heads and
feed-forward units the weights that read the ones that stay are refitted by least squares, in closed
form, to what the map gave before (Hubara et al., arXiv 2102.05099, and its like).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from recsys.compress.calibration import calibrate, item_counts
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
class PruneWidth:
    """Keeps of item vectors and residual stream the directions in which most is told apart."""

    keep: int
    """Width that stays."""
    recover_epochs: int = 0
    """Epochs of training after the step."""


@dataclass(frozen=True, kw_only=True)
class PruneFeedForward:
    """Keeps in every layer the feed-forward units that add most to the residual stream."""

    keep: int
    """Width of each feed-forward network that stays."""
    recover_epochs: int = 0
    """Epochs of training after the step."""


@dataclass(frozen=True, kw_only=True)
class PruneLength:
    """Keeps of histories the latest items, so that no time is spent on older ones."""

    keep: int
    """Number of items that stay."""
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


def prune_width(
    step: PruneWidth, model: Transformer, histories: Sequence[np.ndarray]
) -> Transformer:
    """Returns the model with narrower item vectors and residual stream.

    Both are turned to their principal directions, and the leading ones stay (Ashkboos et al.,
    SliceGPT, arXiv 2401.15024). Layer norms subtract the mean, so the direction of all ones is the
    first that stays and becomes that of all ones again; what scales and shifts a norm has are
    turned into those maps that read it, but for the first and the last norm, where the nearest
    scales are taken: of a trained model not all scores stay the same even at full width.

    Raises:
        ValueError: the model is narrower than what is to stay, or its item table is factored.
    """
    config = model.config
    check_at_most("PruneWidth.keep", step.keep, config.width, "channels")
    if config.item_rank is not None or config.item_codes is not None:
        raise ValueError("PruneWidth needs a dense item table: make codes or factors of it later")
    turn_DW, share = _directions(model, histories, step.keep)
    old = {name: weight.double() for name, weight in model.state_dict().items()}
    state = dict(old)
    state["item_embedding.weight"] = old["item_embedding.weight"] @ turn_DW
    # A norm gives vectors of length sqrt(width), of which a share is in what stays.
    length = (share * config.width / step.keep) ** 0.5
    for name in ("embedding_norm", "norm"):
        scale_D, shift_D = old[f"{name}.weight"], old[f"{name}.bias"]
        state[f"{name}.weight"] = (turn_DW.square() * scale_D[:, None]).sum(dim=0) * length
        state[f"{name}.bias"] = shift_D @ turn_DW
    for layer in range(config.num_layers):
        block = f"blocks.{layer}."
        for norm, readers in (("norm_1", ("query", "key", "value")), ("norm_2", ("expand",))):
            scale_D, shift_D = old[f"{block}{norm}.weight"], old[f"{block}{norm}.bias"]
            state[f"{block}{norm}.weight"] = torch.full((step.keep,), length)
            state[f"{block}{norm}.bias"] = (shift_D / _away_from_zero(scale_D)) @ turn_DW
            for reader in readers:
                name = _reads(model, block + reader)
                state[name] = old[name] * scale_D @ turn_DW
        for writer in ("output", "contract"):
            name = _writes(model, block + writer)
            state[name] = turn_DW.T @ old[name]
    smaller = dataclasses.replace(config, width=step.keep)
    return rebuilt(model, smaller, {name: w.float() for name, w in state.items()})


def prune_length(step: PruneLength, model: Model, _histories: Sequence[np.ndarray]) -> Model:
    """Returns the model with a shorter view of histories and the same weights.

    Raises:
        ValueError: the model sees fewer items than are to stay.
    """
    check_at_most("PruneLength.keep", step.keep, model.config.max_length, "positions")
    shorter = dataclasses.replace(model.config, max_length=step.keep)
    return rebuilt(model, shorter, model.state_dict())


def _directions(
    model: Transformer, histories: Sequence[np.ndarray], keep: int
) -> tuple[Tensor, float]:
    """Returns turn_DW, W orthonormal columns that span the direction of all ones and the principal
    ones of the rest, and the share of the squares that is along them."""
    moments = calibrate(model, histories).moments
    table_VD = model.item_table().detach().double()
    table_VD = table_VD * item_counts(histories, len(table_VD)).sqrt()[:, None]
    readers = [m for name, m in moments.items() if name.endswith(("query", "expand"))]
    total_DD = torch.stack([m / m.trace() for m in (*readers, table_VD.T @ table_VD)]).sum(dim=0)
    ones_D = torch.full((len(total_DD),), len(total_DD) ** -0.5, dtype=torch.float64)
    rest_DD = torch.eye(len(total_DD), dtype=torch.float64) - ones_D[:, None] * ones_D
    vectors_DD = torch.linalg.eigh(rest_DD @ total_DD @ rest_DD).eigenvectors.flip(1)
    kept_DW = torch.cat([ones_D[:, None], vectors_DD[:, : keep - 1]], dim=1)
    # A reflection that takes the first axis to all ones.
    axis_W = torch.full((keep,), keep**-0.5, dtype=torch.float64)
    axis_W[0] -= 1
    if keep > 1:
        kept_DW = kept_DW - 2 * (kept_DW @ axis_W)[:, None] * axis_W / axis_W.dot(axis_W)
    share = (kept_DW * (total_DD @ kept_DW)).sum() / total_DD.trace()
    return kept_DW, float(share)


def _away_from_zero(scale_D: Tensor) -> Tensor:
    """Returns scales that can be divided by."""
    return torch.where(scale_D < 0, -1.0, 1.0) * scale_D.abs().clamp_min(0.1)


def _reads(model: Transformer, name: str) -> str:
    """Returns the name of the weight that takes a linear map's input."""
    return f"{name}{'.down' if model.config.linear_rank is not None else ''}.weight"


def _writes(model: Transformer, name: str) -> str:
    """Returns the name of the weight that makes a linear map's output."""
    return f"{name}{'.up' if model.config.linear_rank is not None else ''}.weight"


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
    for layer in range(model.config.num_layers):
        block = f"blocks.{layer}."
        moment_II = moments[block + consumer]
        weight_OI = dense_weight(state, block + consumer).double()
        kept = choose(weight_OI.T @ weight_OI * moment_II)
        read = _reads(model, block + consumer)
        state[read] = _refit(state[read], moment_II, kept)
        for producer in producers:
            written = _writes(model, block + producer)
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
