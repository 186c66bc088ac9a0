"""Compression recipes on the command line: `--recipe prune-heads=2 factorize-items=16+3 int8`."""

import difflib
import re
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from recsys.compress import (
    CodebookItems,
    FactorizeItems,
    FactorizeLinears,
    PruneFeedForward,
    PruneHeads,
    PruneLayers,
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
    "factorize-linears": (FactorizeLinears, "rank"),
    "factorize-items": (FactorizeItems, "rank"),
    "codebook-items": (CodebookItems, "codes"),
}
PRECISIONS = {"fp16": Quantize(bits=16), "int8": Quantize(bits=8), "int4": Quantize(bits=4)}
STEP = re.compile(r"(?P<name>[a-z-]+)=(?P<size>\d+)(\+(?P<epochs>\d+))?")


def parse_step(text: str) -> Step:
    """Returns the step that `name=size` or `name=size+epochs of recovery` says.

    Raises:
        ValueError: there is no such step.
    """
    if text in PRECISIONS:
        return PRECISIONS[text]
    found = STEP.fullmatch(text)
    if found is None or found["name"] not in SIZES:
        near = difflib.get_close_matches(text.partition("=")[0], [*SIZES, *PRECISIONS], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{text!r} is no compression step{hint} Steps are {', '.join(PRECISIONS)} and, with a "
            f"size and perhaps epochs of recovery after it (prune-heads=2+3), {', '.join(SIZES)}"
        )
    step, size = SIZES[found["name"]]
    return step(**{size: int(found["size"])}, recover_epochs=int(found["epochs"] or 0))


def format_step(step: Step) -> str:
    """Returns what `parse_step` reads."""
    if isinstance(step, Quantize):
        return next(word for word, precision in PRECISIONS.items() if precision == step)
    name, size = next((n, size) for n, (kind, size) in SIZES.items() if isinstance(step, kind))
    recovery = f"+{step.recover_epochs}" if step.recover_epochs else ""
    return f"{name}={getattr(step, size)}{recovery}"


_RECIPE = PrimitiveConstructorSpec(
    nargs="*",
    metavar="STEP ...",
    instance_from_str=lambda words: tuple(map(parse_step, words)),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda recipe: [format_step(step) for step in recipe],
)
RecipeFlag = Annotated[Recipe, _RECIPE]
"""A recipe as a flag takes it."""
