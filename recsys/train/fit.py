"""One training task from end to end, as a value that can be sent to workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
import torch.distributed as dist

from recsys.data.content import Kind, load_content
from recsys.data.sequences import Dataset
from recsys.evaluate.metrics import ndcg
from recsys.evaluate.ranking import rank_targets
from recsys.models import ModelConfig, build, load_model
from recsys.models.interface import SequenceModel, torch_scorer
from recsys.models.item_table import ItemContent
from recsys.train.loop import Checkpoints, FileCheckpoints, TrainConfig, Workers, train
from recsys.train.objective import Objective, next_item


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, a dataset, an objective and how to train."""

    dataset: Path
    """A prepared dataset."""
    model: ModelConfig
    """The model's shape."""
    train: TrainConfig
    """How to train it."""
    objective: Objective = next_item
    """What to minimise."""
    initial: Path | None = None
    """A model directory with the weights to start from; none for fresh ones."""


class Fitted(NamedTuple):
    """A trained model and its validations."""

    model: SequenceModel
    history: list[dict[str, float]]


def start_model(task: Task, dataset: Dataset) -> SequenceModel:
    """Returns the model before its first step, the same in every worker."""
    if task.initial is not None:
        return load_model(task.initial)
    torch.manual_seed(task.train.seed)
    content = item_content(dataset, task.model.content) if task.model.content else None
    return build(task.model, dataset.num_items_with_padding, content)


def item_content(dataset: Dataset, kinds: Sequence[Kind]) -> ItemContent:
    """Returns what the dataset knows of its items besides their ids.

    Raises:
        ValueError: it has no content of some kind.
    """
    features_VF = load_content(dataset.path, kinds)
    return ItemContent(torch.from_numpy(features_VF), torch.from_numpy(dataset.item_counts_V > 0))


def fit(
    task: Task,
    checkpoints: Checkpoints | Path,
    *,
    workers: Workers | None = None,
    bar: TextIO | None = None,
) -> Fitted:
    """Returns the model with the best NDCG@10 on validation; goes on from a checkpoint.

    Args:
        checkpoints: where the run keeps its state, or a directory for it.
        bar: where the progress bar goes; none for a terminal, if there is one.
    """
    dataset = Dataset.open(task.dataset)
    model = start_model(task, dataset)
    if isinstance(checkpoints, Path):
        checkpoints = FileCheckpoints(checkpoints)
    workers = workers or Workers()
    history = train(
        model,
        dataset,
        task.train,
        objective=task.objective,
        validate=lambda model: validation_ndcg(model, dataset, workers),
        checkpoints=checkpoints,
        workers=workers,
        bar=bar,
    )
    return Fitted(model, history)


def validation_ndcg(
    model: SequenceModel,
    dataset: Dataset,
    workers: Workers = Workers(),  # noqa: B008
) -> float:
    """Returns NDCG@10 on the validation targets, over the whole catalogue; 0 without any.

    Each worker ranks its share of the users.
    """
    part = (workers.rank, workers.world_size)
    ranking = rank_targets(torch_scorer(model), dataset, "validation", part=part)
    sums = torch.tensor([ndcg(ranking.ranks_U, 10).sum(), len(ranking.ranks_U)])
    if workers.world_size > 1:
        dist.all_reduce(sums)
    total, count = sums.tolist()
    return total / count if count else 0.0
