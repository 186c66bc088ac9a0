"""The built-in log: repeatable, without repeats, and with a bound that nobody beats."""

import numpy as np
import pandas as pd
import pytest

from recsys.data.synthetic import SyntheticConfig, _Draw, _next_factors, _world, generate

SMALL = SyntheticConfig(
    num_users=400, num_items=300, num_topics=6, num_families=30, mean_length=15, seed=3
)


@pytest.fixture(scope="module")
def log():
    return generate(SMALL)


@pytest.fixture(scope="module")
def frame(log) -> pd.DataFrame:
    return log.interactions.to_pandas()


def test_the_seed_decides_everything(log):
    again = generate(SMALL)
    assert again.interactions.equals(log.interactions)
    assert again.items.equals(log.items)
    assert again.best_possible == log.best_possible
    other = generate(SyntheticConfig(**{**vars(SMALL), "seed": 4}))
    assert not other.interactions.equals(log.interactions)


def test_nobody_meets_an_item_twice_and_time_goes_on(frame):
    assert not frame.duplicated(["user_id", "item_id"]).any()
    assert (frame.groupby("user_id")["timestamp"].diff().dropna() > 0).all()
    lengths = frame.groupby("user_id").size()
    assert len(lengths) == 400
    assert lengths.min() >= 6
    assert lengths.max() <= SMALL.longest


def test_popularity_is_long_tailed(frame):
    counts = frame["item_id"].value_counts().to_numpy()
    assert counts[:60].sum() > 0.4 * counts.sum()


def test_titles_reveal_the_topic(log):
    items = log.items.to_pandas()
    assert all(title.startswith(topic) for title, topic in items[["title", "topic"]].to_numpy())
    assert items["topic"].nunique() == 6


def test_the_best_possible_is_better_than_popularity(log, frame):
    counts = frame["item_id"].value_counts()
    ranks = []
    for _, items in frame.groupby("user_id")["item_id"]:
        unseen = counts.drop(items.iloc[:-1])
        ranks.append((unseen >= counts[items.iloc[-1]]).sum() - 1)
    ranks_U = np.array(ranks)
    popular = np.where(ranks_U < 10, 1 / np.log2(ranks_U + 2), 0).mean()
    for split in ("validation", "test"):
        best = log.best_possible[split]
        assert popular < best["ndcg@10"] < best["hr@10"] < 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"follow_last": 0.9, "follow_before": 0.2},
        {"num_items": 20},
        {"drift": 1.5},
        {"num_users": 0},
        {"num_topics": 0},
        {"num_successors": 500},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SyntheticConfig(**wrong)


def test_items_are_drawn_by_their_chances_and_seen_ones_never():
    config = SyntheticConfig(num_users=1, num_items=80, num_topics=3, num_families=6, mean_length=6)
    generator = np.random.default_rng(0)
    world = _world(config, generator)
    seen_UL = np.tile([4, 9, 31], (40_000, 1))
    factors_UC = _next_factors(config, world, np.ones(len(seen_UL), int), seen_UL)
    chances_V = world.popularity_V * factors_UC[0][world.family_V]
    assert chances_V.sum() == pytest.approx(1)
    chances_V[seen_UL[0]] = 0
    drawn = _Draw(world)(factors_UC, seen_UL, generator)
    shares_V = np.bincount(drawn, minlength=80) / len(drawn)
    np.testing.assert_allclose(shares_V, chances_V / chances_V.sum(), atol=0.01)
    assert shares_V[seen_UL[0]].sum() == 0
