"""Recovery training after a compression step."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recsys.checkpoint import ITEMS, Origin
from recsys.compress import CodebookItems, Recover, Step
from recsys.models import save
from recsys.models.interface import SequenceModel
from recsys.train.config import TrainConfig
from recsys.train.fit import Fitted, Task, fit
from recsys.train.objective import Objective

LEARNING_RATE_SHARE = 0.25  # of the training before: the model starts near where it should end
CODES_SHARE = 1.0  # but not where items have just got codes: the best are far from the first


def recovery(
    dataset: Path,
    objective: Objective,
    train: TrainConfig,
    directory: Path,
    trainer: Callable[[Task, Path], Fitted] = fit,
) -> Recover:
    """Returns a function that trains a model on after a step, for as long as that asks for.

    Args:
        train: as the model was trained; batches have as many positions where rows of `row_length`
            have become longer than what the model sees.
        directory: where models before recovery and checkpoints go, a folder for each call in turn.
        trainer: trains a task with its checkpoints in a directory.
    """
    numbers = itertools.count(1)

    def recover(model: SequenceModel, step: Step, bits: int | None) -> SequenceModel:
        checkpoints = directory / f"recovery-{next(numbers)}"
        initial = checkpoints / "initial"
        save(model, initial, items=dataset / ITEMS, origin=Origin(role="compressed"))
        share = CODES_SHARE if isinstance(step, CodebookItems) else LEARNING_RATE_SHARE
        seen = model.config.max_length
        length = train.row_length or seen
        rows = train.batch_rows * length // min(length, seen)
        task = Task(
            dataset=dataset,
            model=model.config,
            train=replace(
                train,
                epochs=step.recover_epochs,
                learning_rate=train.learning_rate * share,
                batch_rows=rows,
                row_length=min(length, seen),
            ),
            objective=objective,
            initial=initial,
            weight_bits=bits,
        )
        return trainer(task, checkpoints).model

    return recover
