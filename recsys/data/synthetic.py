"""The built-in log: users with drifting interests, whose true next-item probabilities are known.

The next item comes from a mixture: a successor of the last item, a successor of the one before, or
an item of the topic that the user is in, by a long-tailed popularity. Nobody meets an item twice.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

SHORTEST = 6
FIRST_DAY = 1_700_000_000  # Unix seconds
TOPIC_WORDS = (
    "amber basil cedar delta ember fjord grove haven ivory jade koala lotus maple nectar opal pearl"
).split()
KIND_WORDS = "lamp chair kettle jacket novel camera guitar bottle carpet puzzle".split()


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The size and the flavour of the built-in log."""

    num_users: int = 4000
    """Users."""
    num_items: int = 1500
    """Items."""
    num_topics: int = 30
    """Latent topics; every item is of one."""
    mean_length: int = 24
    """Mean number of items a user meets; at least 6, at most 60."""
    num_successors: int = 4
    """Items that tend to follow an item."""
    follow_last: float = 0.5
    """Probability that a step follows the last item."""
    follow_before: float = 0.25
    """Probability that a step follows the item before the last."""
    drift: float = 0.08
    """Probability that a user moves to a neighbouring topic at a step."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        if self.follow_last + self.follow_before > 1:
            raise ValueError("follow_last and follow_before are probabilities of one choice")
        if self.num_items < max(10 * self.num_successors, 2 * self.longest):
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
    """The parameters that the generator draws once."""

    topic_V: np.ndarray
    popularity_TV: np.ndarray
    successors_VS: np.ndarray
    successors_before_VS: np.ndarray
    weights_S: np.ndarray


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
    topic_V = np.sort(generator.integers(0, config.num_topics, config.num_items))
    zipf_V = 1 / (1 + generator.permutation(config.num_items)) ** 0.9
    popularity_TV = (topic_V[None] == np.arange(config.num_topics)[:, None]) * zipf_V
    popularity_TV += 0.002 * zipf_V
    popularity_TV /= popularity_TV.sum(axis=1, keepdims=True)
    tables = [_successors(config, topic_V, generator) for _ in range(2)]
    weights_S = 0.6 ** np.arange(config.num_successors)
    return _World(topic_V, popularity_TV.astype(np.float32), *tables, weights_S / weights_S.sum())


def _successors(
    config: SyntheticConfig, topic_V: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Returns, for every item, items of its own topic or the next one."""
    members = [np.flatnonzero(topic_V == topic) for topic in range(config.num_topics)]
    size = (config.num_items, config.num_successors)
    near = (topic_V[:, None] + (generator.random(size) < 0.2)) % config.num_topics
    pick = generator.random(size)
    sizes = np.array([max(len(m), 1) for m in members])
    starts = np.searchsorted(topic_V, np.arange(config.num_topics))
    return np.minimum(starts[near] + (pick * sizes[near]).astype(int), config.num_items - 1)


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
    rows = np.arange(len(topic_U))[:, None]
    if step > 0:
        successors = world.successors_VS[items_UL[:, -1]]
        np.add.at(scores_UV, (rows, successors), (last * world.weights_S).astype(np.float32))
    if step > 1:
        successors = world.successors_before_VS[items_UL[:, -2]]
        np.add.at(scores_UV, (rows, successors), (before * world.weights_S).astype(np.float32))
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
    def name(topic: int) -> str:
        word = TOPIC_WORDS[topic % len(TOPIC_WORDS)]
        return word if topic < len(TOPIC_WORDS) else f"{word} {topic // len(TOPIC_WORDS) + 1}"

    kinds = generator.choice(KIND_WORDS, config.num_items)
    topics = [name(topic) for topic in world.topic_V.tolist()]
    titles = [
        f"{topic} {kind} no. {number}"
        for number, (topic, kind) in enumerate(zip(topics, kinds, strict=True), start=1)
    ]
    ids = [str(number) for number in range(1, config.num_items + 1)]
    return pa.table({"item_id": ids, "title": titles, "topic": topics})
