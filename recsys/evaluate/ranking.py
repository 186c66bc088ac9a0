"""Where every user's target stands in the whole catalogue, seen items removed.

Scores are made for a batch of users at a time: no users x items matrix is ever whole in memory.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from recsys.data.sequences import Dataset
from recsys.evaluate.largest import largest

Scorer = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray]
"""Histories (item indexes, oldest first) and their timestamps, with that of the target at the end,
to scores_BV; column 0 is padding."""
Split = Literal["validation", "test"]
LIST_LENGTH = 10
BATCH_SIZE = 128
LARGEST_BATCH = 2**24  # scores over the catalogue that are in memory at a time


class Ranking(NamedTuple):
    """The outcome of a full ranking."""

    users_U: np.ndarray
    """The users that were ranked."""
    ranks_U: np.ndarray
    """Items above each user's target; ties count as above."""
    top_UK: np.ndarray
    """The ten best items of each user."""
    num_repeat_targets: int
    """Users left out, because their target is in their history."""


def rank_targets(
    score: Scorer,
    dataset: Dataset,
    split: Split,
    *,
    part: tuple[int, int] = (0, 1),
    batch_size: int = BATCH_SIZE,
    keep_seen: bool = False,
    progress: bool = False,
) -> Ranking:
    """Returns the ranks of the targets of `split`.

    Args:
        part: (i, n) ranks the i-th of n parts of the users only.
        batch_size: users scored together, at most; fewer where the catalogue is large.
        keep_seen: rank without removing seen items: a protocol of its own.

    Raises:
        ValueError: a score is not finite, or the scores are not of the dataset's catalogue.
    """
    users_U, targets_U = dataset.targets(split)
    users_U, targets_U = users_U[part[0] :: part[1]], targets_U[part[0] :: part[1]]
    # Users of similar lengths share a batch, so that little padding is computed.
    order = np.argsort(targets_U, kind="stable")
    users_U, targets_U = users_U[order], targets_U[order]
    batch_size = max(1, min(batch_size, LARGEST_BATCH // dataset.num_items_with_padding))
    starts = range(0, len(users_U), batch_size)
    pieces = [
        _rank_batch(
            score,
            dataset,
            users_U[at : at + batch_size],
            targets_U[at : at + batch_size],
            keep_seen,
        )
        for at in tqdm(starts, desc=split, disable=None if progress else True, leave=False)
    ]
    return join(pieces)


def _rank_batch(
    score: Scorer, dataset: Dataset, users_B: np.ndarray, targets_B: np.ndarray, keep_seen: bool
) -> Ranking:
    """Returns the ranking of a batch, whose scores are all in memory."""
    pairs = list(zip(users_B.tolist(), targets_B.tolist(), strict=True))
    histories = [dataset.history(user)[:target] for user, target in pairs]
    item_B = np.array([dataset.history(user)[target] for user, target in pairs])
    times = [dataset.timestamps(user)[: target + 1] for user, target in pairs]
    scores_BV = np.array(score(histories, times), dtype=np.float32)
    _check(scores_BV, dataset.num_items_with_padding)
    scores_BV[:, 0] = -np.inf
    rows = np.arange(len(item_B))
    target_B = scores_BV[rows, item_B]
    if not keep_seen:
        for row, history in zip(scores_BV, histories, strict=True):
            row[history] = -np.inf
    ranks_B = (scores_BV >= target_B[:, None]).sum(axis=1) - 1
    rankable_B = scores_BV[rows, item_B] > -np.inf
    top_BK = _best(scores_BV)[rankable_B]
    num_repeats = int((~rankable_B).sum())
    return Ranking(users_B[rankable_B], ranks_B[rankable_B], top_BK, num_repeats)


def _check(scores_BV: np.ndarray, size: int) -> None:
    if scores_BV.shape[1] != size:
        raise ValueError(
            f"the model scores {scores_BV.shape[1] - 1:,} items and the dataset has {size - 1:,}: "
            "evaluate a model on the dataset that it was trained on"
        )
    if not np.isfinite(scores_BV[:, 1:]).all():
        raise ValueError("a score is not finite: the model is damaged or its training diverged")


def _best(scores_BV: np.ndarray) -> np.ndarray:
    """Returns the indexes of the best items, best first; 0 where there are too few."""
    top_BN = np.zeros((len(scores_BV), LIST_LENGTH), np.int64)
    for top_N, scores_V in zip(top_BN, scores_BV, strict=True):
        best_K = largest(scores_V, LIST_LENGTH)
        best_K[np.isneginf(scores_V[best_K])] = 0
        top_N[: len(best_K)] = best_K
    return top_BN


def join(pieces: Sequence[Ranking]) -> Ranking:
    """Returns the ranking of all users of `pieces`, in the order of users."""
    if not pieces:
        empty = np.empty(0, np.int64)
        return Ranking(empty, empty, np.empty((0, LIST_LENGTH), np.int64), 0)
    users_U, ranks_U, top_UK = (
        np.concatenate(part) for part in list(zip(*pieces, strict=True))[:3]
    )
    order = np.argsort(users_U)
    num_repeats = sum(piece.num_repeat_targets for piece in pieces)
    return Ranking(users_U[order], ranks_U[order], top_UK[order], num_repeats)
