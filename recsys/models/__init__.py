"""The union of model configs, building what they describe, and its way to disk and back."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from recsys.checkpoint import (
    CONFIG,
    Origin,
    load_weights,
    read_model_config,
    save_model,
    verify_model,
)
from recsys.config import from_json
from recsys.models.ensemble import Ensemble, EnsembleConfig
from recsys.models.gru import GRU, GRUConfig
from recsys.models.hstu import HSTU, HSTUConfig
from recsys.models.interface import SequenceModel
from recsys.models.item_table import ENCODER, ItemContent
from recsys.models.transformer import Transformer, TransformerConfig

ModelConfig = TransformerConfig | HSTUConfig | GRUConfig | EnsembleConfig
"""Every kind of model there is; a new one adds its config here and its case to `build`."""
StudentConfig = TransformerConfig | GRUConfig
"""The kinds that can be compressed and served."""
ITEM_ROWS = ("item_embedding.weight", "ids.weight", "codes_VR", "codes_VP")
"""Endings of the names of an item table's weights that have a row an item."""


def build(
    config: ModelConfig, num_items_with_padding: int, content: ItemContent | None = None
) -> SequenceModel:
    """Returns a model with fresh weights drawn from torch's random state.

    Args:
        content: of the kinds that `config` names, if it names any.
    """
    match config:
        case TransformerConfig():
            if config.content and content is None:
                raise ValueError("a model with content is built from content")
            return Transformer(config, num_items_with_padding, content)
        case HSTUConfig():
            return HSTU(config, num_items_with_padding)
        case GRUConfig():
            return GRU(config, num_items_with_padding)
        case EnsembleConfig():
            members = [build(member, num_items_with_padding) for member in config.members]
            return Ensemble(config, members)


def join(members: Sequence[SequenceModel], weights: tuple[float, ...] = ()) -> Ensemble:
    """Returns one model whose scores are the mean of the members', or their weighted sum.

    It is asked and not trained: of content it keeps the item vectors, not what they are made of.

    Raises:
        ValueError: there are none, one is an ensemble itself, they read different lengths, or
            there are more or fewer weights.
    """
    if any(isinstance(member, Ensemble) for member in members):
        raise ValueError("an ensemble cannot be a member of another: name its members")
    members = [without_content(member) for member in members]
    config = EnsembleConfig(members=tuple(m.config for m in members), weights=weights)
    return Ensemble(config, members)


def without_content(model: SequenceModel) -> SequenceModel:
    """Returns a model of the same scores whose item table is dense, content summed into it."""
    if not (isinstance(model, Transformer) and model.config.content):
        return model
    model.eval()
    state = {k: w for k, w in model.state_dict().items() if not k.startswith("item_embedding.")}
    table_VD = model.item_table().detach()
    state["item_embedding.weight"] = table_VD
    config = replace(model.config, content=(), num_read=0, item_rank=None, item_codes=None)
    plain = build(config, len(table_VD))
    plain.load_state_dict(state)
    plain.eval()
    return plain


def without_encoder(model: SequenceModel) -> SequenceModel:
    """Returns a model of the same scores whose features of text stand, as those of images do."""
    if not (isinstance(model, Transformer) and model.config.num_read):
        return model
    model.eval()
    model.item_table()  # by the encoder as it is
    state = {k: w for k, w in model.state_dict().items() if not k.startswith(ENCODER)}
    plain = _of_shapes(replace(model.config, num_read=0), state)
    plain.load_state_dict(state)
    plain.eval()
    return plain


def save(
    model: SequenceModel,
    directory: Path,
    *,
    items: Path,
    origin: Origin,
) -> None:
    """Writes `model` as a model directory; see `recsys.checkpoint.save_model`."""
    weights = {name: w.detach().cpu().numpy() for name, w in model.state_dict().items()}
    save_model(
        directory,
        config=model.config,
        weights=weights,
        items=items,
        origin=origin,
    )


def reads_target_time(config: ModelConfig) -> bool:
    """Returns whether a model is told when the item to predict is asked for: another track."""
    match config:
        case HSTUConfig():
            return config.time == "target"
        case EnsembleConfig():
            return any(reads_target_time(member) for member in config.members)
        case _:
            return False


def read_shape(directory: Path) -> ModelConfig:
    """Returns the shape of a model directory's model.

    Raises:
        ValueError: there is no model, or it is of a newer schema or of an unknown kind.
    """
    value = read_model_config(directory)["model"]
    try:
        found = from_json(ModelConfig, value)
    except TypeError as error:
        raise ValueError(f"{directory / CONFIG} does not describe a model ({error})") from None
    if not is_dataclass(found):
        raise ValueError(f"{directory / CONFIG} does not say what kind its model is of")
    return cast(ModelConfig, found)


def load_model(directory: Path) -> SequenceModel:
    """Returns the model of a model directory, ready to score.

    Raises:
        ValueError: the directory is incomplete, damaged, of a newer schema, or of an unknown kind.
    """
    verify_model(directory)
    config = read_shape(directory)
    weights = {name: torch.from_numpy(w) for name, w in load_weights(directory).items()}
    try:
        model = _of_shapes(config, weights)
        model.load_state_dict(weights)
    except (TypeError, LookupError, AttributeError, RuntimeError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else "they have no item table"
        raise ValueError(
            f"{directory} has other weights than its config.json describes ({reason}); make it anew"
        ) from None
    model.eval()
    return model


def _of_shapes(config: ModelConfig, weights: Mapping[str, torch.Tensor], prefix: str = ""):
    """Returns a model that the weights fit; those of an ensemble's member have a prefix."""
    if isinstance(config, EnsembleConfig):
        members = enumerate(config.members)
        return Ensemble(config, [_of_shapes(m, weights, f"members.{i}.") for i, m in members])
    content = None
    if isinstance(config, TransformerConfig) and config.content:
        table = f"{prefix}item_embedding."
        content = ItemContent(weights[f"{table}features_VF"], weights[f"{table}trained_V"])
    return build(config, num_rows(weights, prefix), content)


def num_rows(weights: Mapping[str, Any], prefix: str = "") -> int:
    """Returns how many rows the item table among a model's weights has, the padding's included."""
    table = f"{prefix}item_embedding."
    return next(
        len(w) for name, w in weights.items() if name.startswith(table) and name.endswith(ITEM_ROWS)
    )
