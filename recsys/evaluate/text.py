"""How often a text classifier is right."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from recsys.data.texts import LabelledTexts
from recsys.evaluate.metrics import bootstrap_interval


class Classifier(Protocol):
    """Anything that tells the category of a text."""

    categories: tuple[str, ...]

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
