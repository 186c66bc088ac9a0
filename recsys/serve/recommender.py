"""A model directory as a recommender: external item ids in, ranked external item ids out.

Needs numpy, Arrow and ONNX Runtime, and Numba where very many items have codes; neither PyTorch nor
Ray.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.checkpoint import GRAPH, ITEMS, read_model_config, scores_seen, verify_model
from recsys.evaluate.engine import OnnxModel
from recsys.files import hash_of, read_json
from recsys.serve.schema import Item, Recommendation, Request

SCORES_PER_CALL = 1 << 24
"""Scores in memory at once (64 MiB): a call of many histories is cut into several."""
MAX_ROWS_PER_CALL = 256
VERSION_LENGTH = 12


class Recommender:
    """The model in a directory, its items, and what it says about itself.

    Attributes:
        version: a hash of what decides the answers.
        num_items: how many items the model can recommend.
        scores_seen: whether its scores of items of the history mean anything.
        config, report: `config.json` and `report.json` (None where there is none).
    """

    def __init__(self, directory: Path, *, threads: int = 1) -> None:
        """Loads the model.

        Raises:
            ValueError: the directory is no whole model directory, or has no serving form.
        """
        self.config: dict[str, Any] = verify_model(directory)
        for name, remedy in ((GRAPH, "export it with jobs.compress"), (ITEMS, "make it anew")):
            if name not in self.config["files"]:
                raise ValueError(f"{directory} cannot be served: it has no {name}; {remedy}")
        self.scores_seen = scores_seen(self.config)
        report = directory / "report.json"
        self.report: dict[str, Any] | None = read_json(report) if report.exists() else None
        files = {name: self.config["files"][name]["sha256"] for name in (GRAPH, ITEMS)}
        decisive = {**files, "scores_seen": self.scores_seen}
        self.version = hash_of(decisive)[:VERSION_LENGTH]
        self._item_ids, self._popularity_V = _read_items(directory / ITEMS)
        self._index = {item_id: i for i, item_id in enumerate(self._item_ids) if i > 0}
        self._popular = 1 + np.argsort(-self._popularity_V[1:], kind="stable")
        self.num_items = len(self._item_ids) - 1
        self._model = OnnxModel(directory, threads=threads)
        if read_model_config(directory) != self.config:  # directories are replaced whole
            raise ValueError(f"{directory} was replaced while it was read; read it again")
        if self._model.num_items != self.num_items:
            raise ValueError(
                f"{directory} cannot be served: {GRAPH} has {self._model.num_items} items, "
                f"{ITEMS} {self.num_items}; make it anew"
            )

    def recommend(
        self, histories: Sequence[Sequence[str]], *, k: int, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """Returns, for each history of item ids (oldest first), up to `k` items, best first.

        Items that the model does not know are ignored and named. A history in which it knows
        none gets the most popular items, their scores being counts of training interactions.
        """
        return self._recommend(histories, [k] * len(histories), exclude_seen)

    def _recommend(
        self, histories: Sequence[Sequence[str]], ks: Sequence[int], exclude_seen: bool
    ) -> list[Recommendation]:
        """Returns the same, up to `ks[i]` items for the i-th history."""
        known = [[self._index[i] for i in history if i in self._index] for history in histories]
        rows = [row for row, history in enumerate(known) if history]
        ranked = self._rank(
            [np.asarray(known[row], np.int64) for row in rows],
            [ks[row] for row in rows],
            exclude_seen,
        )
        by_row = dict(zip(rows, ranked, strict=True))
        return [
            Recommendation(
                items=by_row[row] if row in by_row else self._popular_items(ks[row]),
                unknown_items=list(dict.fromkeys(i for i in history if i not in self._index)),
                popular=row not in by_row,
            )
            for row, history in enumerate(histories)
        ]

    def answer(self, requests: Sequence[Request]) -> list[list[Recommendation]]:
        """Returns the recommendations for each request; histories of all go to the model together.

        A request gets what it would have got alone.
        """
        answers: dict[int, list[Recommendation]] = {}
        for flag in {request.exclude_seen for request in requests}:
            group = [
                (i, request) for i, request in enumerate(requests) if request.exclude_seen is flag
            ]
            together = iter(
                self._recommend(
                    [history for _, request in group for history in request.histories],
                    [request.k for _, request in group for _ in request.histories],
                    flag,
                )
            )
            for i, request in group:
                answers[i] = [next(together) for _ in request.histories]
        return [answers[i] for i in range(len(requests))]

    def _rank(
        self, histories: list[np.ndarray], ks: list[int], exclude_seen: bool
    ) -> list[list[Item]]:
        size = min(MAX_ROWS_PER_CALL, max(1, SCORES_PER_CALL // len(self._item_ids)))
        lists: list[list[Item]] = []
        for start in range(0, len(histories), size):
            part = slice(start, start + size)
            lists += self._rank_together(histories[part], ks[part], exclude_seen)
        return lists

    def _rank_together(
        self, histories: list[np.ndarray], ks: list[int], exclude_seen: bool
    ) -> list[list[Item]]:
        # The graph sees the latest max_length items only: what was seen before them is asked for
        # in addition, and left out here.
        older = [
            np.unique(history[: -self._model.max_length]) if exclude_seen else history[:0]
            for history in histories
        ]
        asked = max(k + len(seen) for k, seen in zip(ks, older, strict=True))
        asked = min(self.num_items, asked)
        items_BK, scores_BK = self._model.top_k(histories, asked, exclude_seen)
        lists = []
        for items_K, scores_K, seen, k in zip(items_BK, scores_BK, older, ks, strict=True):
            # As many as it needs itself, however many another history does.
            items_K, scores_K = items_K[: k + len(seen)], scores_K[: k + len(seen)]
            new_K = np.isfinite(scores_K) & ~np.isin(items_K, seen)
            lists.append(self._items(items_K[new_K][:k], scores_K[new_K][:k]))
        return lists

    def _popular_items(self, k: int) -> list[Item]:
        items_K = self._popular[:k]
        return self._items(items_K, self._popularity_V[items_K])

    def _items(self, items_K: np.ndarray, scores_K: np.ndarray) -> list[Item]:
        rounded = np.round(scores_K.astype(np.float64), 6).tolist()
        return [
            Item(item_id=self._item_ids[item], score=score)
            for item, score in zip(items_K.tolist(), rounded, strict=True)
        ]


def _read_items(path: Path) -> tuple[list[str], np.ndarray]:
    missing = {"item_id", "popularity"} - set(pq.read_schema(path).names)
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(sorted(missing))}; "
            "prepare the dataset and train the model anew"
        )
    table = pq.read_table(path, columns=["item_id", "popularity"])
    item_ids = table["item_id"].to_pylist()
    is_text = all(isinstance(item_id, str) for item_id in item_ids[1:])
    if item_ids[:1] != [None] or not is_text or len(set(item_ids)) < len(item_ids):
        raise ValueError(f"{path} does not hold padding and then items, each once; make it anew")
    try:
        popularity_V = table["popularity"].fill_null(0).to_numpy().astype(np.float64)
    except (ValueError, pa.ArrowException):
        raise ValueError(f"{path} has a popularity that is no number; make it anew") from None
    return item_ids, popularity_V
