"""The built-in log: users with drifting interests, whose true next-item probabilities are known.

Items belong to families, families to topics. The next item comes from a mixture: a family that
follows the last item's, one that follows the family of the item before, or the topic that the user
is in; within a family or topic by a long-tailed popularity. Nobody meets an item twice.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

SHORTEST = 6
FIRST_DAY = 1_700_000_000  # Unix seconds
TOPICS = "amber basil cedar delta ember fjord grove haven ivory jade koala lotus maple nectar opal"
KINDS = "lamp chair kettle jacket novel camera guitar bottle carpet puzzle"


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The size and the flavour of the built-in log."""

    num_users: int = 6000
    """Users."""
    num_items: int = 1500
    """Items."""
    num_topics: int = 20
    """Latent topics; every family is of one."""
    num_families: int = 160
    """Families of items that are followed by the same families."""
    mean_length: int = 24
    """Mean number of items a user meets; at least 6, at most 60."""
    num_successors: int = 3
    """Families that tend to follow a family."""
    follow_last: float = 0.5
    """Probability that a step follows the last item's family."""
    follow_before: float = 0.3
    """Probability that a step follows the family of the item before the last."""
    drift: float = 0.08
    """Probability that a user moves to a neighbouring topic at a step."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        if min(self.follow_last, self.follow_before, 1 - self.drift) < 0:
            raise ValueError("follow_last, follow_before and drift are probabilities")
        if self.follow_last + self.follow_before >= 1:
            raise ValueError("follow_last and follow_before must leave a chance of other items")
        if self.num_items < max(2 * self.num_families, 4 * self.longest):
            raise ValueError(f"num_items is too small for sequences of up to {self.longest}")

    @property
    def longest(self) -> int:
        """Returns the length that no sequence exceeds."""
        return max(SHORTEST, min(60, 3 * self.mean_length))


class SyntheticLog(NamedTuple):
    """What the generator made."""

    interactions: pa.Table
    """Columns user_id, item_id, timestamp."""
    items: pa.Table
    """Columns item_id, title, topic."""
    best_possible: dict[str, dict[str, float]]
    """NDCG@10 and HR@10 of ranking by the true probabilities, for validation and test."""


class _World(NamedTuple):
    """The parameters that the generator draws once; C counts families, T topics."""

    topic_V: np.ndarray
    family_V: np.ndarray
    popularity_TV: np.ndarray
    after_last_CV: np.ndarray
    after_before_CV: np.ndarray


def generate(config: SyntheticConfig) -> SyntheticLog:
    """Returns the log, its items, and what an all-knowing ranker would score on it."""
    generator = np.random.default_rng(config.seed)
    world = _world(config, generator)
    lengths = generator.geometric(1 / max(config.mean_length - SHORTEST, 1), config.num_users)
    lengths = np.minimum(lengths + SHORTEST - 1, config.longest)
    items_UL, ranks_UL = _walk(config, world, lengths, generator)
    return SyntheticLog(
        interactions=_interactions(items_UL, lengths, generator),
        items=_items(config, world, generator),
        best_possible={
            "validation": _best(ranks_UL[np.arange(len(lengths)), lengths - 2]),
            "test": _best(ranks_UL[np.arange(len(lengths)), lengths - 1]),
        },
    )


def _world(config: SyntheticConfig, generator: np.random.Generator) -> _World:
    family_V = generator.integers(0, config.num_families, config.num_items)
    topic_C = np.arange(config.num_families) % config.num_topics
    topic_V = topic_C[family_V]
    weight_V = 1 / (1 + generator.permutation(config.num_items)) ** 0.7
    popularity_TV = _shares(topic_V, weight_V, config.num_topics)
    family_CV = _shares(family_V, weight_V, config.num_families)
    after_last, after_before = (_transitions(config, generator) for _ in range(2))
    return _World(
        topic_V, family_V, popularity_TV, after_last @ family_CV, after_before @ family_CV
    )


def _shares(group_V: np.ndarray, weight_V: np.ndarray, num_groups: int) -> np.ndarray:
    """Returns, for every group, the probabilities of its items."""
    weights_GV = (group_V[None] == np.arange(num_groups)[:, None]) * weight_V
    weights_GV += 1e-4 * weight_V  # nothing is impossible
    return (weights_GV / weights_GV.sum(axis=1, keepdims=True)).astype(np.float32)


def _transitions(config: SyntheticConfig, generator: np.random.Generator) -> np.ndarray:
    """Returns, for every family, the probabilities of the families that follow it."""
    weight_S = 0.5 ** np.arange(config.num_successors)
    transitions_CC = np.zeros((config.num_families, config.num_families), np.float32)
    for row in transitions_CC:
        followers = generator.choice(config.num_families, config.num_successors, replace=False)
        row[followers] = weight_S / weight_S.sum()
    return transitions_CC


def _walk(
    config: SyntheticConfig, world: _World, lengths: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns items_UL and, for each, how many unseen items were at least as probable."""
    num_users, num_steps = len(lengths), int(lengths.max())
    items_UL = np.zeros((num_users, num_steps), np.int64)
    ranks_UL = np.zeros((num_users, num_steps), np.int64)
    topic_U = generator.integers(0, config.num_topics, num_users)
    unseen_UV = np.ones((num_users, config.num_items), bool)
    for step in range(num_steps):
        users = np.flatnonzero(lengths > step)
        moves = generator.random(len(users)) < config.drift
        topic_U[users] = (topic_U[users] + moves) % config.num_topics
        scores_UV = _probabilities(config, world, topic_U[users], items_UL[users, :step])
        scores_UV *= unseen_UV[users]
        sums_UV = scores_UV.cumsum(axis=1)
        draw_U = generator.random((len(users), 1)).astype(np.float32) * sums_UV[:, -1:]
        chosen_U = np.minimum((sums_UV < draw_U).sum(axis=1), config.num_items - 1)
        chance_U = scores_UV[np.arange(len(users)), chosen_U]
        ranks_UL[users, step] = (scores_UV >= chance_U[:, None]).sum(axis=1) - 1
        items_UL[users, step] = chosen_U
        unseen_UV[users, chosen_U] = False
    return items_UL, ranks_UL


def _probabilities(
    config: SyntheticConfig, world: _World, topic_U: np.ndarray, items_UL: np.ndarray
) -> np.ndarray:
    """Returns the true probabilities of the next item, before seen items are taken out."""
    step = items_UL.shape[1]
    last = config.follow_last if step > 0 else 0.0
    before = config.follow_before if step > 1 else 0.0
    scores_UV = (1 - last - before) * world.popularity_TV[topic_U]
    if step > 0:
        scores_UV += last * world.after_last_CV[world.family_V[items_UL[:, -1]]]
    if step > 1:
        scores_UV += before * world.after_before_CV[world.family_V[items_UL[:, -2]]]
    return scores_UV


def _best(ranks_U: np.ndarray) -> dict[str, float]:
    hits_U = ranks_U < 10
    gains_U = np.where(hits_U, 1 / np.log2(ranks_U + 2.0), 0.0)
    return {"ndcg@10": float(gains_U.mean()), "hr@10": float(hits_U.mean())}


def _interactions(
    items_UL: np.ndarray, lengths: np.ndarray, generator: np.random.Generator
) -> pa.Table:
    users, steps = np.nonzero(np.arange(items_UL.shape[1])[None] < lengths[:, None])
    gaps_UL = generator.integers(60, 86_400, items_UL.shape).cumsum(axis=1)
    return pa.table(
        {
            "user_id": pa.array(users.astype(str).tolist()),
            "item_id": pa.array((items_UL[users, steps] + 1).astype(str).tolist()),
            "timestamp": pa.array(FIRST_DAY + gaps_UL[users, steps]),
        }
    )


def _items(config: SyntheticConfig, world: _World, generator: np.random.Generator) -> pa.Table:
    words = TOPICS.split()

    def name(topic: int) -> str:
        word = words[topic % len(words)]
        return word if topic < len(words) else f"{word} {topic // len(words) + 1}"

    kinds = generator.choice(KINDS.split(), config.num_items)
    topics = [name(topic) for topic in world.topic_V.tolist()]
    titles = [
        f"{topic} {kind} no. {number}"
        for number, (topic, kind) in enumerate(zip(topics, kinds, strict=True), start=1)
    ]
    ids = [str(number) for number in range(1, config.num_items + 1)]
    return pa.table({"item_id": ids, "title": titles, "topic": topics})
