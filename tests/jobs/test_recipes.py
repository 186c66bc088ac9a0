import typing

import pytest

from jobs.command import command
from jobs.compress import Compress
from jobs.recipes import NAMED, SIZES, format_step, parse_recipe, parse_step
from recsys.compress import CodebookItems, FactorizeItems, PruneHeads, Quantize, Step

WORDS = ["prune-heads=2", "factorize-items=16+3", "codebook-items=8", "int8", "int4+2", "fp16"]
STEPS = (
    PruneHeads(keep=2),
    FactorizeItems(rank=16, recover_epochs=3),
    CodebookItems(codes=8),
    Quantize(),
    Quantize(bits=4, recover_epochs=2),
    Quantize(bits=16),
)


def test_steps_are_read_and_written():
    assert tuple(map(parse_step, WORDS)) == STEPS
    assert [format_step(step) for step in STEPS] == WORDS


def test_every_step_has_a_word():
    assert {kind for kind, _ in SIZES.values()} | {Quantize} == set(typing.get_args(Step))


def test_a_recipe_is_a_flag():
    seen = []
    assert command(Compress.from_preset, seen.append, ["quickstart", "--recipe", *WORDS]) == 0
    assert seen[0].recipe == STEPS


def test_a_name_stands_for_its_steps():
    tiny = (CodebookItems(codes=8, recover_epochs=3), Quantize(bits=4, recover_epochs=3))
    assert parse_recipe(["prune-heads=2", "tiny"]) == (PruneHeads(keep=2), *tiny)
    assert all(parse_recipe([name]) for name in NAMED)


@pytest.mark.parametrize(
    "word",
    [
        "int2",
        "int8=4",
        "int4=8+2",
        "int4+",
        "codebook-items",
        "prune-head=2",
        "prune-heads",
        "prune-heads=2+",
        "=2",
    ],
)
def test_what_is_no_step_is_refused(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(Compress.from_preset, print, ["quickstart", "--recipe", word])
    assert stopped.value.code == 2
    assert "is no compression step" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("word", "meant"),
    [("prune-head=2", "prune-heads=2"), ("prune-heads", "prune-heads=2"), ("int8=4", "int8")],
)
def test_what_is_no_step_is_told_what_was_meant(word, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'\\? Steps are"):
        parse_step(word)
