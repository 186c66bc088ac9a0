"""What any model must beat: popularity, and what came after the last item before."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from recsys.data.sequences import Dataset
from recsys.evaluate.ranking import Scorer


def baselines(dataset: Dataset) -> dict[str, Scorer]:
    """Returns all of them by name."""
    return {"popularity": popularity(dataset), "last-item-markov": last_item_markov(dataset)}


def popularity(dataset: Dataset) -> Scorer:
    """Returns a scorer that gives every history the items' counts in training."""
    counts_V = dataset.item_counts_V.astype(np.float32)

    def score(histories: Sequence[np.ndarray], _times: object = None) -> np.ndarray:
        return np.tile(counts_V, (len(histories), 1))

    return score


def last_item_markov(dataset: Dataset) -> Scorer:
    """Returns a scorer by how often an item followed the last one in training.

    Ties, and last items that nothing followed, are settled by popularity.
    """
    counts_V = dataset.item_counts_V.astype(np.float32)
    tie_breaker_V = counts_V / (counts_V.sum() + 1)
    lengths = enumerate(dataset.train_length_U.tolist())
    trained = [dataset.history(user)[:length] for user, length in lengths]
    none = np.empty(0, np.int32)
    before = np.concatenate([none, *(items[:-1] for items in trained)])
    after = np.concatenate([none, *(items[1:] for items in trained)])
    size = dataset.num_items_with_padding
    ones = np.ones(len(before), np.float32)
    followers_VV = csr_array((ones, (before, after)), shape=(size, size))

    def score(histories: Sequence[np.ndarray], _times: object = None) -> np.ndarray:
        last_B = np.array([history[-1] if len(history) else 0 for history in histories])
        return followers_VV[last_B].toarray() + tie_breaker_V

    return score
