"""Texts with a category each: what a text classifier learns from.

The text of an item and one of its categories, or the titles of a history and the next item.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import require_at_least
from recsys.data.content import require_columns, texts_of
from recsys.data.read import read_table
from recsys.data.sequences import ITEMS, Dataset


class LabelledTexts(NamedTuple):
    """N texts and their categories."""

    texts_N: list[str]
    labels_N: np.ndarray
    """Indexes of categories, int64."""
    categories: tuple[str, ...]
    """Names: of `label` the most frequent first, of `Titles` in the order of the catalogue."""

    def split(self, share: float, seed: int) -> tuple["LabelledTexts", "LabelledTexts"]:
        """Returns all but a random `share` of the texts, and that share.

        Raises:
            ValueError: one of the two would be empty.
        """
        num_apart = round(share * len(self.texts_N))
        if not 0 < num_apart < len(self.texts_N):
            raise ValueError(
                f"{len(self.texts_N)} texts are too few to set {share:.0%} of them apart"
            )
        rows = np.random.default_rng(seed).permutation(len(self.texts_N))
        return self._take(rows[num_apart:]), self._take(rows[:num_apart])

    def _take(self, rows: np.ndarray) -> "LabelledTexts":
        texts = [self.texts_N[row] for row in rows]
        return self._replace(texts_N=texts, labels_N=self.labels_N[rows])


def read_texts(
    location: str,
    text_columns: Sequence[str],
    category_column: str,
    *,
    num_categories: int = 10,
    test_share: float = 0.2,
    seed: int = 0,
) -> tuple[LabelledTexts, LabelledTexts]:
    """Returns texts to train on and texts to test on, from an item table in any known format.

    Raises:
        ValueError: the table cannot be read, lacks a column, or has fewer than two categories.
    """
    table = read_table(location)
    texts = label(table, text_columns, category_column, num_categories=num_categories)
    return texts.split(test_share, seed)


def label(
    table: pa.Table,
    text_columns: Sequence[str],
    category_column: str,
    *,
    num_categories: int = 10,
) -> LabelledTexts:
    """Returns the texts of items that have one, and one of the most frequent categories.

    A category is a value of a column, or of the lists in it. An item that has several of the most
    frequent is left out: which of them it was meant to be told apart by, nobody has said.

    Raises:
        ValueError: the table lacks a column, or has fewer than two categories.
    """
    require_columns(table, (*text_columns, category_column))
    if category_column in text_columns:
        raise ValueError(f"{category_column!r} is what the text is to tell: leave it out of it")
    values_V = [_values(value) for value in table[category_column].to_pylist()]
    counts = Counter(value for values in values_V for value in dict.fromkeys(values))
    frequent = {value for value, _ in counts.most_common(num_categories)}
    pairs = [
        (text, next(iter(found)))
        for text, values in zip(texts_of(table, text_columns), values_V, strict=True)
        for found in [frequent.intersection(values)]
        if text is not None and len(found) == 1
    ]
    categories = tuple(value for value, _ in Counter(value for _, value in pairs).most_common())
    if len(categories) < 2:
        found = f"only {categories[0]!r}" if categories else "none"
        raise ValueError(f"two categories are needed, and {category_column!r} has {found}")
    labels_N = np.array([categories.index(value) for _, value in pairs])
    return LabelledTexts([text for text, _ in pairs], labels_N, categories)


class Titles:
    """The titles of a dataset's items: histories become texts, and the items categories."""

    def __init__(self, dataset: Dataset, text_columns: Sequence[str], *, num_last: int = 8):
        """
        Args:
            text_columns: columns of the item table that make a title.
            num_last: titles of a history that are read.

        Raises:
            ValueError: the dataset's item table lacks a column, no item has a title, or `num_last`
                is below 1.
        """
        require_at_least(1, num_last=num_last)
        items = pq.read_table(dataset.path / ITEMS)
        require_columns(items, text_columns)
        self.dataset, self.num_last = dataset, num_last
        self.titles_V = [text or "" for text in texts_of(items, text_columns)]
        if not any(self.titles_V):
            raise ValueError(f"no item of {dataset.path} has a title in {', '.join(text_columns)}")

    @property
    def items(self) -> tuple[str, ...]:
        """External ids of the items that can come next, in the order of the catalogue."""
        return tuple(self.dataset.item_ids.to_pylist()[1:])

    @property
    def descriptions(self) -> list[str]:
        """Titles of `items`; empty where there is none."""
        return self.titles_V[1:]

    def text(self, history: np.ndarray) -> str:
        """Returns the titles of a history's last items, the newest first."""
        titles = (self.titles_V[item] for item in history[: -self.num_last - 1 : -1])
        return "; ".join(filter(None, titles))

    def next_items(self, num_per_user: int = 2) -> LabelledTexts:
        """Returns histories and the item that followed, from the training part of the log.

        Args:
            num_per_user: of every user's training items, how many of the last are predicted.

        Raises:
            ValueError: `num_per_user` is below 1.
        """
        require_at_least(1, num_per_user=num_per_user)
        texts, labels = [], []
        for user, length in enumerate(self.dataset.train_length_U):
            history = self.dataset.history(user)
            for target in range(max(1, length - num_per_user), length):
                texts.append(self.text(history[:target]))
                labels.append(history[target] - 1)
        return LabelledTexts(texts, np.array(labels, np.int64), self.items)


def _values(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    texts = [str(value).strip() for value in values if value is not None and value == value]
    return list(filter(None, texts))  # what is missing is nothing, NaN or blank
