from dataclasses import dataclass
from pathlib import Path

import pytest

from recsys.config import from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Round:
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square:
    side: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Round | Square = Round()
    shapes: tuple[Round | Square, ...] = ()
    rank: int | None = None
    path: Path = Path("x")


@pytest.mark.parametrize(
    "config",
    [
        Drawing(),
        Drawing(shape=Square(side=2.0), shapes=(Round(), Square()), rank=3, path=Path("y")),
    ],
)
def test_round_trip(config):
    assert from_json(Drawing, to_json(config)) == config


def test_unknown_setting_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'radius'"):
        from_json(Round, {"kind": "Round", "radios": 1.0})


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"unknown kind 'Squar'.*'Square'"):
        from_json(Round | Square, {"kind": "Squar"})
