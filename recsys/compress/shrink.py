"""A student that starts as its teacher, cut to the student's shape."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from recsys.checkpoint import ITEMS, Origin
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
from recsys.compress.package import calibration_histories
from recsys.compress.prune import rebuilt
from recsys.data.sequences import Dataset
from recsys.evaluate.report import check_catalogue
from recsys.models import StudentConfig, load_model, save
from recsys.models.ensemble import Ensemble
from recsys.models.interface import SequenceModel
from recsys.models.transformer import Transformer, TransformerConfig

Start = Literal["auto", "teacher", "fresh"]
INITIAL = "initial"
SIZES = ("width", "num_layers", "num_heads", "feed_forward_width")


def write_initial(
    start: Start, teacher: Path, config: StudentConfig, dataset: Dataset, directory: Path
) -> tuple[Path | None, str]:
    """Writes what a student starts as, below `directory`.

    Args:
        start: as the teacher ("teacher"), at random ("fresh"), or as the teacher where its shape
            allows it ("auto").
        teacher: its model directory.

    Returns:
        The model directory, none for a student that starts at random; and, of one that was not told
        to, why.

    Raises:
        ValueError: it is to start as the teacher and cannot, or the teacher is damaged or of other
            items.
    """
    if start == "fresh":
        return None, ""
    check_catalogue(teacher, dataset)
    whole = load_model(teacher)
    histories = calibration_histories(dataset)
    try:
        student = shrink(whole, config, histories=histories)
    except ValueError as error:
        if start == "teacher":
            raise
        return None, str(error)
    origin = Origin(role="student")
    save(student, directory / INITIAL, items=dataset.path / ITEMS, origin=origin)
    return directory / INITIAL, ""


def require_part(teacher: SequenceModel, config: StudentConfig) -> None:
    """Checks that a student of `config` can be cut from a teacher.

    Raises:
        ValueError: it cannot; with the reason.
    """
    whole = _whole(teacher)
    if not (isinstance(whole, Transformer) and isinstance(config, TransformerConfig)):
        raise ValueError("only a transformer is cut from its teacher, and only from another one")
    had = whole.config
    if config.content:
        raise ValueError("a student with content is not cut from its teacher")
    if config.head_width != had.head_width:
        raise ValueError(
            f"heads are kept whole: give the student --model.head-width {had.head_width}"
        )
    if any(value is not None for value in (had.linear_rank, had.item_rank, had.item_codes)):
        raise ValueError("the teacher's maps or items are in factors or codes, and are not cut")
    for name in SIZES:
        wanted, most = getattr(config, name), getattr(had, name)
        if wanted > most:
            raise ValueError(f"the student's {name} is {wanted}, the teacher's {most}")


def _whole(teacher: SequenceModel) -> object:
    """Returns what is cut: of an ensemble the member of most weight, of equal ones the first."""
    if not isinstance(teacher, Ensemble):
        return teacher
    return teacher.members[int(np.argmax(teacher.weights))]


def shrink(
    teacher: SequenceModel, config: StudentConfig, *, histories: Sequence[np.ndarray]
) -> SequenceModel:
    """Returns a model of `config` with the layers, heads, channels and directions of the teacher
    that matter most; of an ensemble, those of the member of most weight.

    Args:
        histories: real ones, to measure on what matters.

    Raises:
        ValueError: the student is no part of the teacher.
    """
    require_part(teacher, config)
    whole = _whole(teacher)
    assert isinstance(whole, Transformer)
    assert isinstance(config, TransformerConfig)
    had = whole.config
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
    smaller, _ = compress(whole, tuple(steps), histories=histories)
    assert isinstance(smaller, Transformer)
    return rebuilt(smaller, config, dict(smaller.state_dict()))
