"""The union of model configs, building what they describe, and its way to disk and back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from recsys.checkpoint import ITEMS, load_weights, read_model_config, save_model, verify_model
from recsys.config import from_json
from recsys.models.interface import SequenceModel
from recsys.models.item_table import ItemContent
from recsys.models.transformer import Transformer, TransformerConfig

ModelConfig = TransformerConfig
"""Every kind of model there is; a new one adds its config here and its case to `build`."""


def build(
    config: ModelConfig, num_items_with_padding: int, content: ItemContent | None = None
) -> SequenceModel:
    """Returns a model with fresh weights drawn from torch's random state.

    Args:
        content: of the kinds that `config` names, if it names any.
    """
    match config:
        case TransformerConfig():
            return Transformer(config, num_items_with_padding, content)


def without_content(model: SequenceModel) -> SequenceModel:
    """Returns a model of the same scores whose item table is dense, content summed into it."""
    if not model.config.content:
        return model
    model.eval()
    state = {k: w for k, w in model.state_dict().items() if not k.startswith("item_embedding.")}
    state["item_embedding.weight"] = model.item_table().detach()
    config = replace(model.config, content=(), item_rank=None)
    plain = build(config, len(model.item_table()))
    plain.load_state_dict(state)
    plain.eval()
    return plain


def save(
    model: SequenceModel,
    directory: Path,
    *,
    items: Path,
    role: str,
    parents: Mapping[str, str] | None = None,
    recipe: Sequence[Any] = (),
) -> None:
    """Writes `model` as a model directory; see `recsys.checkpoint.save_model`."""
    weights = {name: w.detach().cpu().numpy() for name, w in model.state_dict().items()}
    save_model(
        directory,
        config=model.config,
        weights=weights,
        items=items,
        role=role,
        parents=parents,
        recipe=recipe,
    )


def load_model(directory: Path) -> SequenceModel:
    """Returns the model of a model directory, ready to score.

    Raises:
        ValueError: the directory is incomplete, damaged, of a newer schema, or of an unknown kind.
    """
    verify_model(directory)
    config = from_json(ModelConfig, read_model_config(directory)["model"])
    weights = {name: torch.from_numpy(w) for name, w in load_weights(directory).items()}
    content = None
    if config.content:
        parts = (weights[f"item_embedding.{name}"] for name in ItemContent._fields)
        content = ItemContent(*parts)
    model = build(config, pq.read_metadata(directory / ITEMS).num_rows, content)
    model.load_state_dict(weights)
    model.eval()
    return model
