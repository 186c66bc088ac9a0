"""Weights of an ensemble's members by what they know of validation."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.sequences import Dataset
from recsys.models.interface import SequenceModel, torch_scorer

MOST_USERS = 2000
MOST_SCORES = 1 << 27  # 512 MiB
BATCH_SIZE = 128
NUM_STEPS = 50


def stacked_weights(
    members: Sequence[SequenceModel], dataset: Dataset, *, seed: int = 0
) -> tuple[float, ...]:
    """Returns the weights, at least 0, that make validation items likeliest.

    A softmax of weighted sums of scores has a likelihood that is concave in the weights, so there
    is one best choice of them (stacking: Wolpert, 1992; Breiman, Stacked regressions, 1996). They
    need not sum to 1: scores that are too sure of themselves get smaller. It is asked for over
    items that are new to the users, of whom `MOST_USERS` are drawn, or as many as memory is for.

    Raises:
        ValueError: there is no member, or no user has a new item in validation.
    """
    if not members:
        raise ValueError("there are no members to weigh")
    users_U, targets_U = dataset.targets("validation")
    most = max(min(MOST_USERS, MOST_SCORES // (len(members) * dataset.num_items_with_padding)), 1)
    drawn = np.random.default_rng(seed).permutation(len(users_U))[:most]
    pairs = [
        (dataset.history(user), dataset.timestamps(user), target)
        for user, target in zip(users_U[drawn].tolist(), targets_U[drawn].tolist(), strict=True)
    ]
    pairs = [(items, times, at) for items, times, at in pairs if items[at] not in items[:at]]
    if not pairs:
        raise ValueError("no user has a new item in validation to weigh members by")
    histories = [items[:at] for items, _, at in pairs]
    times = [times[: at + 1] for _, times, at in pairs]
    items_U = torch.tensor([int(items[at]) for items, _, at in pairs])
    scores_MUV = torch.stack([_scores(member, histories, times) for member in members])
    return _likeliest(scores_MUV, _left_out(histories, scores_MUV.shape[2]), items_U)


def _scores(
    member: SequenceModel, histories: Sequence[np.ndarray], times: Sequence[np.ndarray]
) -> Tensor:
    score = torch_scorer(member)
    parts = [slice(at, at + BATCH_SIZE) for at in range(0, len(histories), BATCH_SIZE)]
    return torch.cat([torch.from_numpy(score(histories[p], times[p])) for p in parts])


def _left_out(histories: Sequence[np.ndarray], num_columns: int) -> Tensor:
    """Returns where scores_UV take no part: what was seen, and the padding."""
    left_out_UV = torch.zeros(len(histories), num_columns, dtype=torch.bool)
    left_out_UV[:, 0] = True
    for row_V, history in zip(left_out_UV, histories, strict=True):
        row_V[torch.from_numpy(history.astype(np.int64))] = True
    return left_out_UV


def _likeliest(scores_MUV: Tensor, left_out_UV: Tensor, items_U: Tensor) -> tuple[float, ...]:
    """Returns the weights, as exponentials that L-BFGS finds."""
    logs_M = torch.full((len(scores_MUV),), -np.log(len(scores_MUV)), requires_grad=True)
    optimizer = torch.optim.LBFGS([logs_M], max_iter=NUM_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores_UV = torch.tensordot(logs_M.exp(), scores_MUV, dims=1)
        mean = nn.functional.cross_entropy(scores_UV.masked_fill(left_out_UV, -np.inf), items_U)
        mean.backward()
        return mean

    optimizer.step(loss)
    return tuple(logs_M.exp().tolist())
