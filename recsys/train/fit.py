"""One training task from end to end, as a value that can be sent to workers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
import torch.distributed as dist
from torch import nn

from recsys.data.content import Kind, load_content
from recsys.data.sequences import Dataset
from recsys.evaluate.metrics import ndcg
from recsys.evaluate.ranking import rank_targets
from recsys.models import ModelConfig, TransformerConfig, build, load_model
from recsys.models.interface import SequenceModel, torch_scorer
from recsys.models.item_table import CodebookItemTable, ItemContent, ItemText, TextItemTable
from recsys.models.moving_codes import fix_codes, move_codes
from recsys.models.rounding import keep_weights, round_weights
from recsys.train.config import TrainConfig
from recsys.train.loop import Checkpoints, FileCheckpoints, Workers, train
from recsys.train.objective import Objective, next_item

NumWorkers = int | tuple[int, int]
"""A fixed number of workers, or the fewest and the most."""


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
    """A model directory with the weights to start from, and codes of items that move; none for
    fresh ones, and codes that stay."""
    weight_bits: int | None = None
    """Bits that weights are rounded to wherever they are used, and not where they are kept; none to
    use them as they are."""


class Fitted(NamedTuple):
    """A trained model and its validations."""

    model: SequenceModel
    history: list[dict[str, float]]
    peak_memory_mib: int
    """The most that a worker's process has held."""


def most(num_workers: NumWorkers) -> int:
    """Returns the number, or the most, of workers."""
    return num_workers if isinstance(num_workers, int) else num_workers[1]


def start_model(task: Task, dataset: Dataset) -> SequenceModel:
    """Returns the model before its first step, the same in every worker."""
    if task.initial is None:
        model = _new_model(task, dataset)
    else:
        model = load_model(task.initial)
        move_codes(model)
    if task.weight_bits is not None:
        round_weights(model, task.weight_bits)
    return model


def finish_model(model: SequenceModel) -> None:
    """Undoes what `start_model` has done for training alone; in place."""
    keep_weights(model)
    fix_codes(model)


def _new_model(task: Task, dataset: Dataset) -> SequenceModel:
    torch.manual_seed(task.train.seed)
    content = None
    if isinstance(task.model, TransformerConfig) and task.model.content:
        content = item_content(dataset, task.model.content, learns=task.model.num_read > 0)
    model = build(task.model, dataset.num_items_with_padding, content)
    assert isinstance(model, nn.Module)
    for table in model.modules():
        if isinstance(table, CodebookItemTable):
            from recsys.train.codes import codes_by_users  # slow to import

            codes_VP = codes_by_users(dataset, table.codes_VP.shape[1])
            if codes_VP is not None:
                table.codes_VP.copy_(torch.from_numpy(codes_VP))
    return model


def item_content(dataset: Dataset, kinds: Sequence[Kind], *, learns: bool = False) -> ItemContent:
    """Returns what the dataset knows of its items besides their ids.

    Args:
        learns: whether with the text encoder, for it to be trained.

    Raises:
        ValueError: it has no content of some kind.
    """
    features_VF = torch.from_numpy(load_content(dataset.path, kinds))
    trained_V = torch.from_numpy(dataset.item_counts_V > 0)
    return ItemContent(features_VF, trained_V, _item_text(dataset) if learns else None)


def _item_text(dataset: Dataset) -> ItemText:
    from recsys.data.encoders import load_texts  # slow, and its packages are an extra

    encoder, tokens_VT, mean_F = load_texts(dataset.path)
    return ItemText(encoder.mean_state, tokens_VT, encoder.mean_state.padding, mean_F)


def save_encoder(model: SequenceModel, dataset: Dataset, directory: Path) -> bool:
    """Writes the text encoder of a model that has taught it, with its tokenizer, as a directory
    that jobs.prepare takes; returns whether there is one."""
    table = getattr(model, "item_embedding", None)
    if not isinstance(table, TextItemTable):
        return False
    from recsys.data.encoders import load_texts  # as above

    encoder = load_texts(dataset.path).encoder
    encoder.mean_state.load_state_dict(table.encoder.state_dict())
    encoder.save(directory)
    return True


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

    Raises:
        ValueError: there is nothing to train on, or nothing to choose or measure a model by.
    """
    dataset = Dataset.open(task.dataset)
    require_targets(dataset)
    model = start_model(task, dataset)
    if isinstance(checkpoints, Path):
        checkpoints = FileCheckpoints(checkpoints)
    workers = workers or Workers()
    sharded = task.train.shares_out(workers.world_size)
    trained = train(
        model,
        dataset,
        task.train,
        objective=task.objective,
        validate=lambda model: validation_ndcg(
            model, dataset, workers, sharded, task.train.validation_users
        ),
        checkpoints=checkpoints,
        workers=workers,
        bar=bar,
    )
    finish_model(model)
    return Fitted(model, *trained)


def require_targets(dataset: Dataset) -> None:
    """Checks now what would end a training of hours at its end.

    Raises:
        ValueError: there is nothing to choose or measure a model by.
    """
    for split in ("validation", "test"):
        users_U, targets_U = dataset.targets(split)
        if not len(users_U):
            raise ValueError(
                f"{dataset.path} has no event for {split}: a user needs three events or, where the "
                "split is at two moments, there must be some before, between and after both"
            )
        pairs = zip(map(dataset.history, users_U.tolist()), targets_U.tolist(), strict=True)
        if all(items[target] in items[:target] for items, target in pairs):
            raise ValueError(
                f"{dataset.path} has no event for {split} that is new to its user: what is met "
                "again is not recommended, and there is nothing to choose or measure a model by"
            )


def validation_ndcg(
    model: SequenceModel,
    dataset: Dataset,
    workers: Workers = Workers(),  # noqa: B008
    sharded: bool = False,
    most_users: int | None = None,
) -> float:
    """Returns NDCG@10 on the validation targets, over the whole catalogue; 0 without any.

    Each worker ranks its share of the users; of a sharded model no worker needs the whole.

    Args:
        most_users: how many users count at most, taken evenly from all; none for all.
    """
    users_U, _ = dataset.targets("validation")
    every = math.ceil(len(users_U) / most_users) if most_users and len(users_U) else 1
    part = (workers.rank * every, workers.world_size * every)
    if sharded:
        from recsys.train.sharded import rank_sharded

        ranking = rank_sharded(model, dataset, "validation", part)
    else:
        ranking = rank_targets(torch_scorer(model), dataset, "validation", part=part)
    sums = torch.tensor([ndcg(ranking.ranks_U, 10).sum(), len(ranking.ranks_U)])
    sums = sums.to(next(model.parameters()).device)
    if workers.world_size > 1:
        dist.all_reduce(sums)
    total, count = sums.tolist()
    return total / count if count else 0.0
