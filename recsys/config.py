"""Configs as JSON: frozen dataclasses to plain dictionaries and back, refusing what is unknown."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def to_json(config: Any) -> Any:
    """Returns `config` as JSON values; every dataclass carries its class name as "kind"."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": type(config).__name__, **fields}
    if isinstance(config, tuple | list):
        return [to_json(value) for value in config]
    if isinstance(config, dict):
        return {str(key): to_json(value) for key, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_json(annotation: Any, data: Any) -> Any:
    """Returns the value of type `annotation` that `to_json` wrote as `data`.

    Raises:
        ValueError: an unknown kind or key, with the nearest known name.
    """
    if isinstance(data, dict) and "kind" in data:
        cls = _choose(_members(annotation), data["kind"])
        return _build(cls, {key: value for key, value in data.items() if key != "kind"})
    if isinstance(data, list):
        return tuple(from_json(_element(annotation), value) for value in data)
    return Path(str(data)) if annotation is Path else data


def require_at_least(least: int, **settings: int | None) -> None:
    """Raises a ValueError that names the first of `settings` that is below `least`; None is not."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def require_below_one(**shares: float) -> None:
    """Raises a ValueError that names the first of `shares` that is not in [0, 1)."""
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), not {value}")


def _build(cls: type, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"{cls.__name__} has no setting {key!r}{_suggest(key, list(hints))}")
    return cls(**{key: from_json(hints[key], value) for key, value in values.items()})


def _members(annotation: Any) -> list[type]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [cls for part in typing.get_args(annotation) for cls in _members(part)]
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [annotation] if dataclasses.is_dataclass(annotation) else []  # type: ignore[list-item]


def _choose(members: list[type], kind: str) -> type:
    by_name = {cls.__name__: cls for cls in members}
    if kind not in by_name:
        raise ValueError(f"unknown kind {kind!r}{_suggest(kind, list(by_name))}")
    return by_name[kind]


def _element(annotation: Any) -> Any:
    for part in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(part) is tuple:
            return typing.get_args(part)[0]
    return Any


def _suggest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
