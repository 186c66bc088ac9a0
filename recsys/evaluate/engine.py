"""The engine that serves: ONNX Runtime over a model directory's graph. No PyTorch.

A graph of very many items that have codes says what each code adds to a score; the sums are made
here, by `recsys.evaluate.codes`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
)

from recsys.checkpoint import GRAPH
from recsys.data.batches import pad_histories

if TYPE_CHECKING:
    from recsys.evaluate.codes import CodeScorer

MAX_LENGTH, NUM_ITEMS = "max_length", "num_items"
UNREADABLE = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf)


class OnnxModel:
    """Scores histories of item indexes and lists the best items."""

    def __init__(self, path: Path, threads: int = 1):
        """Loads a graph.

        Args:
            path: a model directory, or its `model.onnx`.

        Raises:
            ValueError: there is no graph, or it is not one of ours.
        """
        path = path / GRAPH if path.is_dir() else path
        if not path.exists():
            raise ValueError(f"{path} does not exist: the model was not exported")
        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            metadata = self.session.get_modelmeta().custom_metadata_map
            self.max_length = int(metadata[MAX_LENGTH])
            self.num_items = int(metadata[NUM_ITEMS])
            self._by_codes = self._code_scorer()
        except (KeyError, ValueError, *UNREADABLE) as error:
            line = str(error).splitlines()[0]
            raise ValueError(f"{path} is not a graph of a recommender: {line}") from None

    def scores(self, histories: Sequence[np.ndarray], _times: object = None) -> np.ndarray:
        """Returns scores_BV of the whole catalogue; column 0 is -inf. A `Scorer`."""
        if self._by_codes is None:
            return self._run(["scores_BV"], histories, k=1, exclude_seen=False)[0]
        scores_BV = np.empty((len(histories), self.num_items + 1), np.float32)
        for scores_V, partial_PC in zip(scores_BV, self._partial_scores(histories), strict=True):
            scores_V[:] = self._by_codes.scores(partial_PC)
        return scores_BV

    def top_k(
        self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns items_BK and their scores_BK, best first; a score of -inf means no item."""
        if self._by_codes is None:
            outputs = ["items_BK", "item_scores_BK"]
            items_BK, scores_BK = self._run(outputs, histories, k=k, exclude_seen=exclude_seen)
            return items_BK, scores_BK
        k = min(k, self.num_items)
        items_BK = np.empty((len(histories), k), np.int64)
        scores_BK = np.empty((len(histories), k), np.float32)
        for row, partial_PC in enumerate(self._partial_scores(histories)):
            scores_V = self._by_codes.scores(partial_PC)
            if exclude_seen:
                scores_V[histories[row][-self.max_length :]] = -np.inf
            items_BK[row], scores_BK[row] = self._by_codes.best(scores_V, k)
        return items_BK, scores_BK

    def _partial_scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Returns partial_BPC, what each code adds to a score."""
        return self._run(["partial_BPC"], histories)[0]

    def _code_scorer(self) -> "CodeScorer | None":
        """Returns what sums up scores where the graph does not."""
        if "codes_VP" not in {output.name for output in self.session.get_outputs()}:
            return None
        from recsys.evaluate.codes import CodeScorer  # compiles

        codes_VP, partial_BPC = self._run(["codes_VP", "partial_BPC"], [np.array([1])])
        scorer = CodeScorer(codes_VP)
        if len(scorer.scores(partial_BPC[0])) != self.num_items + 1:
            raise ValueError(f"it has codes of {len(codes_VP) - 1} items, not of {self.num_items}")
        return scorer

    def _run(
        self, outputs: list[str], histories: Sequence[np.ndarray], **more: int
    ) -> list[np.ndarray]:
        history_BL, length_B = pad_histories(histories, self.max_length)
        arrays = {name: np.array([value]) for name, value in more.items()}
        feed = {"history_BL": history_BL, "length_B": length_B, **arrays}
        return [np.asarray(value) for value in self.session.run(outputs, feed)]
