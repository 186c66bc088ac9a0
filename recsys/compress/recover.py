"""Recovery training after a compression step."""

import itertools
from dataclasses import replace
from pathlib import Path

from recsys.compress import Recover
from recsys.models.interface import SequenceModel
from recsys.train.fit import Task, fit
from recsys.train.loop import TrainConfig
from recsys.train.objective import Objective

LEARNING_RATE_SHARE = 0.25  # of the training before: the model starts near where it should end


def recovery(dataset: Path, objective: Objective, train: TrainConfig, directory: Path) -> Recover:
    """Returns a function that trains a model on for some epochs.

    Args:
        directory: where checkpoints go, a folder for each call in turn.
    """
    numbers = itertools.count(1)

    def recover(model: SequenceModel, epochs: int) -> SequenceModel:
        checkpoints = directory / f"recovery-{next(numbers)}"
        checkpoints.mkdir(exist_ok=True)
        rate = train.learning_rate * LEARNING_RATE_SHARE
        task = Task(
            dataset=dataset,
            model=model.config,
            train=replace(train, epochs=epochs, learning_rate=rate),
            objective=objective,
        )
        return fit(task, checkpoints, model=model).model

    return recover
