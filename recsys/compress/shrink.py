"""A student that starts as its teacher, cut to the student's shape."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from recsys.compress import (
    CodebookItems,
    FactorizeItems,
    FactorizeLinears,
    PruneFeedForward,
    PruneHeads,
    PruneLayers,
    PruneWidth,
    Step,
    compress,
)
from recsys.compress.prune import rebuilt
from recsys.models import StudentConfig
from recsys.models.ensemble import Ensemble
from recsys.models.interface import SequenceModel
from recsys.models.transformer import Transformer, TransformerConfig


def shrink(
    teacher: SequenceModel, config: StudentConfig, *, histories: Sequence[np.ndarray]
) -> SequenceModel:
    """Returns a model of `config` with the layers, heads, channels and directions of the teacher
    that matter most; of an ensemble's first member.

    Args:
        histories: real ones, to measure on what matters.

    Raises:
        ValueError: the student is no smaller transformer.
    """
    first = next(iter(teacher.members)) if isinstance(teacher, Ensemble) else teacher
    if not (isinstance(first, Transformer) and isinstance(config, TransformerConfig)):
        raise ValueError(
            "only a transformer starts as its teacher, and only as another transformer: "
            "take --start fresh"
        )
    if config.head_width != first.config.head_width:
        raise ValueError(
            f"heads are kept whole: give the student the teacher's, --model.head-width "
            f"{first.config.head_width}, or take --start fresh"
        )
    had = first.config
    pruned = [
        (PruneLayers(keep=config.num_layers), had.num_layers),
        (PruneHeads(keep=config.num_heads), had.num_heads),
        (PruneFeedForward(keep=config.feed_forward_width), had.feed_forward_width),
        (PruneWidth(keep=config.width), had.width),
    ]
    # What the student has whole stays as it is: turned to other directions it nearly would.
    steps: list[Step] = [step for step, size in pruned if step.keep != size]
    if config.linear_rank is not None:
        steps.append(FactorizeLinears(rank=config.linear_rank))
    if config.item_rank is not None:
        steps.append(FactorizeItems(rank=config.item_rank))
    if config.item_codes is not None:
        steps.append(CodebookItems(codes=config.item_codes))
    smaller, _ = compress(first, tuple(steps), histories=histories)
    assert isinstance(smaller, Transformer)
    cut = dataclasses.replace(config, content=(), num_read=0)
    return rebuilt(smaller, cut, dict(smaller.state_dict()))
