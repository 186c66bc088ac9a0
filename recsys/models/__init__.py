"""The union of model configs, building what they describe, and its way to disk and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recsys.checkpoint import load_weights, read_model_config, save_model, verify_model
from recsys.config import from_json
from recsys.models.interface import SequenceModel
from recsys.models.transformer import Transformer, TransformerConfig

ModelConfig = TransformerConfig
"""Every kind of model there is; a new one adds its config here and its case to `build`."""


def build(config: ModelConfig, num_items_with_padding: int) -> SequenceModel:
    """Returns a model with fresh weights drawn from torch's random state."""
    match config:
        case TransformerConfig():
            return Transformer(config, num_items_with_padding)


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
    tables = [
        name for name in weights if name.startswith("item_embedding.") and "basis" not in name
    ]
    model = build(config, len(weights[tables[0]]))
    model.load_state_dict(weights)
    model.eval()
    return model
