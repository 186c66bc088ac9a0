"""A model as the ONNX file that is served, checked against PyTorch before it is written."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from google.protobuf.message import EncodeError
from tqdm import tqdm

from recsys.checkpoint import GRAPH
from recsys.compress.graph import Precision, serving_graph
from recsys.data.batches import pad_histories
from recsys.evaluate.engine import OnnxModel
from recsys.models import StudentConfig, without_content
from recsys.models.interface import SequenceModel, torch_scorer

LIST_LENGTH = 10
BATCH_SIZE = 64
SMALLEST_OVERLAP = {"float32": 0.999, "float16": 0.98, "int8": 0.5, "int4": 0.3}
LARGEST_RELATIVE_DIFFERENCE = {"float32": 1e-3, "float16": 1e-2, "int8": np.inf, "int4": np.inf}
TIE_TOLERANCE = 1e-5


LARGEST_GRAPH = 2**31 - 2**20
"""Bytes of weights that an ONNX file can have: a message of protobuf has less than 2 GiB."""


def has_graph(model: SequenceModel) -> bool:
    """Returns whether the model is of a kind that can be served."""
    return isinstance(model.config, StudentConfig)


def fits_graph(model: SequenceModel) -> bool:
    """Returns whether an ONNX file holds the model in 32 bits."""
    weights = without_content(model).state_dict().values()
    return 4 * sum(weight.numel() for weight in weights) < LARGEST_GRAPH


def export_onnx(
    model: SequenceModel,
    directory: Path,
    *,
    histories: Sequence[np.ndarray],
    precision: Precision = "float32",
) -> dict[str, float]:
    """Writes `model.onnx` into `directory` and returns how far it is from the PyTorch model.

    Returns:
        "top10_overlap", the share of the ten best unseen items that both agree on, and
        "max_score_difference", the largest absolute difference of any score.

    Args:
        histories: real ones, on which graph and model are compared.

    Raises:
        ValueError: graph and model disagree, there are no histories, the model's kind has no graph,
            or its graph is larger than ONNX files can be; nothing is written then.
    """
    if not has_graph(model):
        raise ValueError(f"{type(model).__name__} has no ONNX graph: it can teach, not be served")
    if not len(histories):
        raise ValueError("export needs at least one history to compare graph and model on")
    plain = without_content(model)
    weights = {name: w.detach().cpu().numpy() for name, w in plain.state_dict().items()}
    try:
        graph = serving_graph(plain.config, weights, precision).SerializeToString()
    except EncodeError:
        raise ValueError(
            "the graph has more than the 2 GiB that ONNX files hold: store the item table in fewer "
            "bits (int8), or as codes (codebook-items=16)"
        ) from None
    partial = Path(directory) / f"{GRAPH}.partial"
    try:
        partial.write_bytes(graph)
        parity = compare(OnnxModel(partial), model, histories)
        _refuse_disagreement(parity, precision)
        os.replace(partial, Path(directory) / GRAPH)  # noqa: PTH105
    finally:
        partial.unlink(missing_ok=True)
    return {key: parity[key] for key in ("top10_overlap", "max_score_difference")}


def compare(
    exported: OnnxModel, model: SequenceModel, histories: Sequence[np.ndarray]
) -> dict[str, float]:
    """Returns overlap and difference as `export_onnx` does, and the difference as a share of the
    largest score of the PyTorch model."""
    score = torch_scorer(model)
    overlaps, difference, largest = [], 0.0, 0.0
    for start in tqdm(range(0, len(histories), BATCH_SIZE), desc="parity", disable=None):
        batch = histories[start : start + BATCH_SIZE]
        items_BK, _ = exported.top_k(batch, LIST_LENGTH)
        scores_BV = exported.scores(batch)
        expected_BV = score(batch)
        # NumPy's maximum keeps a NaN, Python's does not.
        difference = np.maximum(difference, np.abs(scores_BV - expected_BV)[:, 1:].max())
        largest = np.maximum(largest, np.abs(expected_BV[:, 1:]).max())
        history_BL, _ = pad_histories(batch, model.config.max_length)
        overlaps.append(_overlap(items_BK, expected_BV, history_BL))
    return {
        "top10_overlap": float(np.concatenate(overlaps).mean()),
        "max_score_difference": float(difference),
        "relative_score_difference": float(difference / largest if largest else difference),
    }


def _overlap(items_BK: np.ndarray, expected_BV: np.ndarray, history_BL: np.ndarray) -> np.ndarray:
    """Returns for each user the share of `items_BK` among the best unseen of `expected_BV`.

    Items whose expected score ties with the last of the list count as being in it.
    """
    unseen_BV = expected_BV.copy()
    np.put_along_axis(unseen_BV, history_BL, -np.inf, axis=1)
    unseen_BV[:, 0] = -np.inf
    threshold_B1 = -np.partition(-unseen_BV, items_BK.shape[1] - 1, axis=1)
    threshold_B1 = threshold_B1[:, items_BK.shape[1] - 1, None]
    threshold_B1 = threshold_B1 - TIE_TOLERANCE * np.abs(expected_BV).max()
    return (np.take_along_axis(unseen_BV, items_BK, axis=1) >= threshold_B1).mean(axis=1)


def _refuse_disagreement(parity: dict[str, float], precision: Precision) -> None:
    overlap, difference = parity["top10_overlap"], parity["relative_score_difference"]
    # Written so that a NaN is refused too.
    enough = overlap >= SMALLEST_OVERLAP[precision]
    near = difference <= LARGEST_RELATIVE_DIFFERENCE[precision]
    if not (enough and near):
        raise ValueError(
            f"the {precision} graph disagrees with the PyTorch model: top-10 overlap "
            f"{overlap:.3f}, largest score difference {parity['max_score_difference']:.2g} "
            f"({difference:.1%} of the largest score); nothing was written"
        )
