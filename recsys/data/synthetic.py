"""The built-in log: users with drifting interests, whose true next-item probabilities are known.

Items belong to families, families to topics. The next item comes from a mixture: a family that
follows the last item's, one that follows the family of the item before, or the topic that the user
is in; within a family or topic by a long-tailed popularity. Nobody meets an item twice.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from recsys.config import require_at_least

SHORTEST = 6
NOTHING = -1
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
        require_at_least(
            1,
            num_users=self.num_users,
            num_families=self.num_families,
            num_topics=self.num_topics,
            num_successors=self.num_successors,
        )
        if self.num_successors > self.num_families:
            raise ValueError("num_successors must be at most num_families")
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
    """The parameters that the generator draws once; C counts families, T topics.

    Chances are factors: an item of family c comes next with its popularity times the factor of c.
    """

    family_V: np.ndarray
    topic_C: np.ndarray
    popularity_V: np.ndarray
    by_topic_TC: np.ndarray
    after_last_CC: np.ndarray
    after_before_CC: np.ndarray


def generate(config: SyntheticConfig) -> SyntheticLog:
    """Returns the log, its items, and what an all-knowing ranker would score on it."""
    generator = np.random.default_rng(config.seed)
    world = _world(config, generator)
    lengths = generator.geometric(1 / max(config.mean_length - SHORTEST, 1), config.num_users)
    lengths = np.minimum(lengths + SHORTEST - 1, config.longest)
    items_UL, ranks_U2 = _walk(config, world, lengths, generator)
    return SyntheticLog(
        interactions=_interactions(items_UL, lengths, generator),
        items=_items(config, world, generator),
        best_possible={
            "validation": _best(ranks_U2[:, 0]),
            "test": _best(ranks_U2[:, 1]),
        },
    )


def _world(config: SyntheticConfig, generator: np.random.Generator) -> _World:
    family_V = generator.integers(0, config.num_families, config.num_items)
    topic_C = np.arange(config.num_families) % config.num_topics
    popularity_V = 1 / (1 + generator.permutation(config.num_items)) ** 0.7
    mass_C = np.bincount(family_V, popularity_V, config.num_families)
    by_topic_TC = _factors(topic_C == np.arange(config.num_topics)[:, None], mass_C)
    by_family_CC = _factors(np.eye(config.num_families), mass_C)
    after_last_CC, after_before_CC = (
        _transitions(config, generator) @ by_family_CC for _ in range(2)
    )
    return _World(family_V, topic_C, popularity_V, by_topic_TC, after_last_CC, after_before_CC)


def _factors(member_GC: np.ndarray, mass_C: np.ndarray) -> np.ndarray:
    """Returns, for every group of families, what the popularity of an item is multiplied by."""
    weight_GC = member_GC + 1e-4  # nothing is impossible
    return weight_GC / (weight_GC @ mass_C)[:, None]


def _transitions(config: SyntheticConfig, generator: np.random.Generator) -> np.ndarray:
    """Returns, for every family, the probabilities of the families that follow it."""
    weight_S = 0.5 ** np.arange(config.num_successors)
    transitions_CC = np.zeros((config.num_families, config.num_families))
    for row in transitions_CC:
        followers = generator.choice(config.num_families, config.num_successors, replace=False)
        row[followers] = weight_S / weight_S.sum()
    return transitions_CC


def _walk(
    config: SyntheticConfig, world: _World, lengths: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns items_UL and, of each user's last two items, how many unseen ones were at least as
    probable: ranks_U2."""
    num_users, num_steps = len(lengths), int(lengths.max())
    items_UL = np.full((num_users, num_steps), NOTHING)
    ranks_U2 = np.zeros((num_users, 2), np.int64)
    topic_U = generator.integers(0, config.num_topics, num_users)
    draw = _Draw(world)
    for step in range(num_steps):
        users = np.flatnonzero(lengths > step)
        moves = generator.random(len(users)) < config.drift
        topic_U[users] = (topic_U[users] + moves) % config.num_topics
        factors_UC = _next_factors(config, world, topic_U[users], items_UL[users, :step])
        items_UL[users, step] = draw(factors_UC, items_UL[users, :step], generator)
        for index in range(2):
            here = lengths[users] == step + 2 - index
            ranks_U2[users[here], index] = _ranks(
                world, factors_UC[here], items_UL[users[here], : step + 1]
            )
    return items_UL, ranks_U2


def _next_factors(
    config: SyntheticConfig, world: _World, topic_U: np.ndarray, items_UL: np.ndarray
) -> np.ndarray:
    """Returns factors_UC of the next item's chances, before seen items are taken out."""
    step = items_UL.shape[1]
    last = config.follow_last if step > 0 else 0.0
    before = config.follow_before if step > 1 else 0.0
    factors_UC = (1 - last - before) * world.by_topic_TC[topic_U]
    if step > 0:
        factors_UC += last * world.after_last_CC[world.family_V[items_UL[:, -1]]]
    if step > 1:
        factors_UC += before * world.after_before_CC[world.family_V[items_UL[:, -2]]]
    return factors_UC


class _Draw:
    """Draws an unseen item: its family by factor and mass, then one of it by popularity."""

    def __init__(self, world: _World):
        self.by_family_V = np.argsort(world.family_V, kind="stable")
        self.cumulative_V = world.popularity_V[self.by_family_V].cumsum()
        self.mass_C = np.bincount(world.family_V, world.popularity_V, len(world.topic_C))
        self.start_C = self.mass_C.cumsum() - self.mass_C

    def __call__(
        self, factors_UC: np.ndarray, seen_UL: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        items_U = np.zeros(len(factors_UC), np.int64)
        left = np.arange(len(factors_UC))
        while len(left):
            cumulative_UC = (factors_UC[left] * self.mass_C).cumsum(axis=1)
            families = _below(cumulative_UC, generator.random(len(left)))
            places = self.start_C[families] + generator.random(len(left)) * self.mass_C[families]
            rows = np.searchsorted(self.cumulative_V, places, side="right")
            items_U[left] = self.by_family_V[np.minimum(rows, len(self.by_family_V) - 1)]
            left = left[(seen_UL[left] == items_U[left, None]).any(axis=1)]
        return items_U


def _below(cumulative_UC: np.ndarray, share_U: np.ndarray) -> np.ndarray:
    """Returns the column of each row where its cumulative sum passes a share of the total."""
    places_U1 = (share_U * cumulative_UC[:, -1])[:, None]
    return np.minimum((cumulative_UC <= places_U1).sum(axis=1), cumulative_UC.shape[1] - 1)


def _ranks(world: _World, factors_UC: np.ndarray, items_UL: np.ndarray) -> np.ndarray:
    """Returns how many unseen items were at least as probable as each user's last item."""
    ranks_U = np.zeros(len(items_UL), np.int64)
    for user, (factors_C, items_L) in enumerate(zip(factors_UC, items_UL, strict=True)):
        chance_V = world.popularity_V * factors_C[world.family_V]
        likely_V = chance_V >= chance_V[items_L[-1]]
        ranks_U[user] = likely_V.sum() - likely_V[items_L].sum()
    return ranks_U


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
    topics = [name(topic) for topic in world.topic_C[world.family_V].tolist()]
    titles = [
        f"{topic} {kind} no. {number}"
        for number, (topic, kind) in enumerate(zip(topics, kinds, strict=True), start=1)
    ]
    ids = [str(number) for number in range(1, config.num_items + 1)]
    return pa.table({"item_id": ids, "title": titles, "topic": topics})
