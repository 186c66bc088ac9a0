"""Compression recipes on the command line: `--recipe prune-heads=2 factorize-items=16+3 int8`, or
by name: `--recipe balanced`."""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Literal

from tyro.constructors import PrimitiveConstructorSpec

from recsys.compress import (
    CodebookItems,
    FactorizeItems,
    FactorizeLinears,
    PruneFeedForward,
    PruneHeads,
    PruneLayers,
    PruneLength,
    PruneWidth,
    Quantize,
    Recipe,
    Step,
)

SIZES = {
    "prune-layers": (PruneLayers, "keep"),
    "prune-heads": (PruneHeads, "keep"),
    "prune-feed-forward": (PruneFeedForward, "keep"),
    "prune-width": (PruneWidth, "keep"),
    "prune-length": (PruneLength, "keep"),
    "factorize-linears": (FactorizeLinears, "rank"),
    "factorize-items": (FactorizeItems, "rank"),
    "codebook-items": (CodebookItems, "codes"),
}
BITS: dict[str, Literal[16, 8, 4]] = {"fp16": 16, "int8": 8, "int4": 4}
NAMED = {
    "faithful": "int8",
    "balanced": "int4+3",
    "tiny": "codebook-items=8+3 int4+3",
}
"""Recipes that have a name, from the one that keeps most to the one of fewest bytes."""
STEP = re.compile(r"(?P<name>[a-z-]+\d*)(=(?P<size>\d+))?(\+(?P<epochs>\d+))?")


def parse_step(text: str) -> Step:
    """Returns the step that `name`, `name=size` or either and `+epochs of recovery` says.

    Raises:
        ValueError: there is no such step.
    """
    if found := STEP.fullmatch(text):
        name, size, epochs = found["name"], found["size"], int(found["epochs"] or 0)
        if name in BITS and size is None:
            return Quantize(bits=BITS[name], recover_epochs=epochs)
        if name in SIZES and size is not None:
            step, field = SIZES[name]
            return step(**{field: int(size)}, recover_epochs=epochs)
    name = re.split("[=+]", text)[0]
    known = {**{size: f"{size}=2" for size in SIZES}, **{word: word for word in (*BITS, *NAMED)}}
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {known[near[0]]!r}?" if near else "."
    raise ValueError(
        f"{text!r} is no compression step{hint} Steps are {', '.join(BITS)} and, with a size "
        f"after them (prune-heads=2), {', '.join(SIZES)}; +3 after any is 3 epochs of recovery; "
        f"recipes with a name are {', '.join(NAMED)}"
    )


def format_step(step: Step) -> str:
    """Returns what `parse_step` reads."""
    recovery = f"+{step.recover_epochs}" if step.recover_epochs else ""
    if isinstance(step, Quantize):
        return next(word for word, bits in BITS.items() if bits == step.bits) + recovery
    name, size = next((n, size) for n, (kind, size) in SIZES.items() if isinstance(step, kind))
    return f"{name}={getattr(step, size)}{recovery}"


def parse_recipe(words: Iterable[str]) -> Recipe:
    """Returns the steps in order; a recipe's name stands for its steps.

    Raises:
        ValueError: a word is neither.
    """
    return tuple(parse_step(step) for word in words for step in NAMED.get(word, word).split())


_RECIPE = PrimitiveConstructorSpec(
    nargs="*",
    metavar="STEP ...",
    instance_from_str=parse_recipe,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda recipe: [format_step(step) for step in recipe],
)
RecipeFlag = Annotated[Recipe, _RECIPE]
"""A recipe as a flag takes it."""
