"""The model directory: what it holds, how it is written, and how it is checked before use.

`config.json` names the role, the model's config, its parents and, for every other file, size and
SHA-256. Weights are safetensors and graphs are ONNX: reading either runs no code.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys.config import to_json
from recsys.files import read_json, sha256, write_json

SCHEMA_VERSION = 1
CONFIG, WEIGHTS, GRAPH, ITEMS = "config.json", "model.safetensors", "model.onnx", "items.parquet"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a model came to be."""

    role: str
    """"teacher", "student" or "compressed"."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of what it was made from, by name."""
    recipe: Sequence[Any] = ()
    """The compression steps that made it."""
    scores_seen: bool = True
    """Whether its scores of what the user has had mean anything: it has learned among all items,
    and not among those only that are new to the user."""


def save_model(
    directory: Path,
    *,
    config: Any,
    weights: Mapping[str, np.ndarray],
    items: Path,
    origin: Origin,
) -> None:
    """Writes a model directory.

    Args:
        config: the dataclass the model was built from.
        items: the `items.parquet` that maps item indexes to external ids; copied.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(w) for key, w in weights.items()}, directory / WEIGHTS)
    shutil.copyfile(items, directory / ITEMS)
    value = {
        "schema_version": SCHEMA_VERSION,
        "role": origin.role,
        "model": to_json(config),
        "recipe": to_json(origin.recipe),
        "scores_seen": origin.scores_seen,
        "parents": dict(origin.parents),
        "files": {},
    }
    write_json(directory / CONFIG, value)
    seal_model(directory)


def seal_model(directory: Path) -> None:
    """Records size and SHA-256 of every model file of `directory` in its `config.json`."""
    config = read_json(directory / CONFIG)
    present = [name for name in (WEIGHTS, GRAPH, ITEMS) if (directory / name).exists()]
    config["files"] = {name: _describe(directory / name) for name in present}
    write_json(directory / CONFIG, config)


def read_model_config(directory: Path) -> dict[str, Any]:
    """Returns the content of `config.json`.

    Raises:
        ValueError: `directory` is no model directory, or one of a newer schema.
    """
    if not (directory / CONFIG).exists():
        raise ValueError(f"{directory} is not a model directory: it has no {CONFIG}")
    config = read_json(directory / CONFIG)
    kinds = {"schema_version": int, "role": str, "model": dict, "files": dict}
    if not isinstance(config, dict) or not all(
        isinstance(config.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(f"{directory / CONFIG} does not describe a model")
    if config["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{directory} has schema version {config['schema_version']}; "
            f"this recsys reads up to {SCHEMA_VERSION}: install a newer one"
        )
    return config


def verify_model(directory: Path) -> dict[str, Any]:
    """Returns the content of `config.json` after checking every file against it.

    Raises:
        ValueError: a file is missing or differs from what was written.
    """
    config = read_model_config(directory)
    for name, expected in config["files"].items():
        path = directory / Path(name).name
        if not path.exists():
            raise ValueError(f"{directory} is incomplete: {name} is missing; make it anew")
        if _describe(path) != expected:
            raise ValueError(f"{path} is damaged: it differs from what was written; make it anew")
    return config


def scores_seen(config: Mapping[str, Any]) -> bool:
    """Returns `Origin.scores_seen` of a `config.json`; true for one from before, which does not
    say."""
    return config.get("scores_seen", True)


def load_weights(directory: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of `model.safetensors`.

    Raises:
        ValueError: the file is missing or not safetensors.
    """
    try:
        return load_file(directory / WEIGHTS)
    except FileNotFoundError:
        raise ValueError(f"{directory} has no {WEIGHTS}: it can be served, not trained") from None
    except SafetensorError as error:
        raise ValueError(f"{directory / WEIGHTS} cannot be read: {error}") from None


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}
