"""Ranking metrics as pure functions of where the targets stand.

A rank counts the items that stand above the target: 0 is the top of the list. Every function
returns one value a user; a metric is their mean.
"""

import numpy as np

MAX_DRAWS = 2_000_000
"""Counts that a bootstrap holds in memory at a time."""


def ndcg(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """Returns NDCG@k with one relevant item: 1 / log2(rank + 2) within the first k, else 0."""
    return np.where(ranks_U < k, 1 / np.log2(ranks_U + 2.0), 0.0)


def hit_rate(ranks_U: np.ndarray, k: int) -> np.ndarray:
    """Returns 1 where the target is among the first k, else 0."""
    return (ranks_U < k).astype(np.float64)


def reciprocal_rank(ranks_U: np.ndarray) -> np.ndarray:
    """Returns 1 / (rank + 1)."""
    return 1 / (ranks_U + 1.0)


def coverage(top_UK: np.ndarray, num_items: int) -> float:
    """Returns the share of the catalogue that stands in at least one list; 0 is padding."""
    return len(np.setdiff1d(top_UK, [0])) / num_items if num_items else 0.0


def bootstrap_interval(
    values_U: np.ndarray, *, seed: int, num_samples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean over users (Efron, 1979).

    A sample of users is drawn as how often each distinct value occurs in it: the same
    distribution as drawing users one by one, at a cost that does not grow with their number.
    """
    distinct_N, counts_N = np.unique(values_U, return_counts=True)
    shares_N = counts_N / len(values_U)
    generator = np.random.default_rng(seed)
    chunk = max(1, MAX_DRAWS // len(distinct_N))
    sizes = [min(chunk, num_samples - start) for start in range(0, num_samples, chunk)]
    draws = (generator.multinomial(len(values_U), shares_N, size=size) for size in sizes)
    means = np.concatenate([draw_SN @ distinct_N for draw_SN in draws]) / len(values_U)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
