"""Ranking metrics as pure functions of where the targets stand.

A rank counts the items that stand above the target: 0 is the top of the list. Every function
returns one value a user; a metric is their mean.
"""

import numpy as np


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
    """Returns the percentile bootstrap interval of the mean over users (Efron, 1979)."""
    generator = np.random.default_rng(seed)
    size = len(values_U)
    means = [values_U[generator.integers(0, size, size)].mean() for _ in range(num_samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
