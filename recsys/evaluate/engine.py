"""The engine that serves: ONNX Runtime over a model directory's graph. No PyTorch."""

from collections.abc import Sequence
from pathlib import Path

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
        except (KeyError, ValueError, *UNREADABLE) as error:
            line = str(error).splitlines()[0]
            raise ValueError(f"{path} is not a graph of a recommender: {line}") from None

    def scores(self, histories: Sequence[np.ndarray], _times: object = None) -> np.ndarray:
        """Returns scores_BV of the whole catalogue; column 0 is -inf. A `Scorer`."""
        (scores_BV,) = self._run(["scores_BV"], histories, 1, False)
        return scores_BV

    def top_k(
        self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns items_BK and their scores_BK, best first; a score of -inf means no item."""
        items_BK, scores_BK = self._run(["items_BK", "item_scores_BK"], histories, k, exclude_seen)
        return items_BK, scores_BK

    def _run(
        self, outputs: list[str], histories: Sequence[np.ndarray], k: int, exclude_seen: bool
    ) -> list[np.ndarray]:
        history_BL, length_B = pad_histories(histories, self.max_length)
        feed = {
            "history_BL": history_BL,
            "length_B": length_B,
            "k": np.array([k], dtype=np.int64),
            "exclude_seen": np.array([exclude_seen]),
        }
        return [np.asarray(value) for value in self.session.run(outputs, feed)]
