"""How often a text classifier is right, and how well one ranks a catalogue."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from recsys.data.texts import LabelledTexts, Titles
from recsys.evaluate.metrics import bootstrap_interval
from recsys.evaluate.report import evaluate_scorer


class Classifier(Protocol):
    """Anything that tells the category of a text."""

    categories: tuple[str, ...]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Returns logits_NC."""
        ...

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the index of each text's most likely category."""
        ...


def evaluate(classifier: Classifier, texts: LabelledTexts) -> dict[str, Any]:
    """Returns the accuracy, its bootstrap interval over texts, and how many there are.

    Raises:
        ValueError: the texts have other categories.
    """
    if texts.categories != classifier.categories:
        raise ValueError("the texts have other categories than the classifier")
    right_N = (classifier.predict(texts.texts_N) == texts.labels_N).astype(np.float64)
    return {
        "accuracy": float(right_N.mean()),
        "accuracy_interval": list(bootstrap_interval(right_N, seed=0)),
        "num_texts": len(right_N),
    }


def rank(classifier: Classifier, titles: Titles) -> dict[str, Any]:
    """Returns the accuracy part of a report of a classifier whose categories are the items: what
    comes next after the titles of a history, of the whole catalogue, on test.

    Args:
        titles: those that the classifier has learned from, or made alike: of the same columns, and
            as many of a history.

    Raises:
        ValueError: the classifier has other categories.
    """
    if titles.items != classifier.categories:
        raise ValueError("the dataset has other items than the classifier has categories")

    def score(histories: Sequence[np.ndarray], timestamps: Sequence[np.ndarray]) -> np.ndarray:
        logits_BV = classifier.logits([titles.text(history) for history in histories])
        return np.pad(logits_BV, ((0, 0), (1, 0)))  # the padding item

    return evaluate_scorer(score, titles.dataset, "test", seed=0)
