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
    NoSuchFile,
    RuntimeException,
)
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from recsys.checkpoint import GRAPH
from recsys.data.batches import pad_histories
from recsys.evaluate.largest import largest

if TYPE_CHECKING:
    from recsys.evaluate.codes import CodeScorer

MAX_LENGTH, NUM_ITEMS = "max_length", "num_items"
UNREADABLE = (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoKernel,
    NoSuchFile,
    RuntimeException,
)


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
        padded = pad_histories(histories, self.max_length)
        if self._by_codes is None:
            return self._run(["scores_BV"], *padded, k=1, exclude_seen=False)[0]
        scores_BV = np.empty((len(histories), self.num_items + 1), np.float32)
        partial_BPC = self._partial_scores(*padded)
        for scores_V, partial_PC in zip(scores_BV, partial_BPC, strict=True):
            scores_V[:] = self._by_codes.scores(partial_PC)
        return scores_BV

    def top_k(
        self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns items_BK and their scores_BK, best first; a score of -inf means no item."""
        history_BL, length_B = pad_histories(histories, self.max_length)
        if self._by_codes is None:
            outputs = ["items_BK", "item_scores_BK"]
            flags = {"k": k, "exclude_seen": exclude_seen}
            items_BK, scores_BK = self._run(outputs, history_BL, length_B, **flags)
            return items_BK, scores_BK
        k = min(k, self.num_items)
        items_BK = np.empty((len(histories), k), np.int64)
        scores_BK = np.empty((len(histories), k), np.float32)
        partial_BPC = self._partial_scores(history_BL, length_B)
        # One history after the other, on one thread: together there are as many sums to make.
        rows = zip(history_BL, partial_BPC, items_BK, scores_BK, strict=True)
        for history_L, partial_PC, items_K, scores_K in rows:
            scores_V = self._by_codes.scores(partial_PC)
            if exclude_seen:
                scores_V[history_L] = -np.inf
            items_K[:] = largest(scores_V, k)
            scores_K[:] = scores_V[items_K]
        return items_BK, scores_BK

    def _partial_scores(self, history_BL: np.ndarray, length_B: np.ndarray) -> np.ndarray:
        """Returns partial_BPC, what each code adds to a score."""
        if not len(history_BL):  # the engine would divide by their number, and die
            return np.empty((0, 0, 0), np.float32)
        return self._run(["partial_BPC"], history_BL, length_B)[0]

    def _code_scorer(self) -> "CodeScorer | None":
        """Returns what sums up scores where the graph does not."""
        if "codes_VP" not in {output.name for output in self.session.get_outputs()}:
            return None
        from recsys.evaluate.codes import CodeScorer  # compiles

        padded = pad_histories([np.array([1])], self.max_length)
        codes_VP, partial_BPC = self._run(["codes_VP", "partial_BPC"], *padded)
        scorer = CodeScorer(codes_VP)
        if partial_BPC.ndim != 3 or len(partial_BPC) != 1:
            raise ValueError(f"partial scores of shape {partial_BPC.shape} for one history")
        if len(scorer.scores(partial_BPC[0])) != self.num_items + 1:
            raise ValueError(f"it has codes of {len(codes_VP) - 1} items, not of {self.num_items}")
        return scorer

    def _run(
        self, outputs: list[str], history_BL: np.ndarray, length_B: np.ndarray, **more: int
    ) -> list[np.ndarray]:
        arrays = {name: np.array([value]) for name, value in more.items()}
        feed = {"history_BL": history_BL, "length_B": length_B, **arrays}
        return [np.asarray(value) for value in self.session.run(outputs, feed)]
