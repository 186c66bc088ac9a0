"""From a trained model to a complete model directory: weights, graph, report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recsys.checkpoint import ITEMS, Origin, seal_model
from recsys.compress.export import export_onnx, fits_graph, has_graph
from recsys.compress.graph import Precision
from recsys.data.sequences import Dataset
from recsys.evaluate.engine import OnnxModel
from recsys.evaluate.report import cost, evaluate_scorer, write_report
from recsys.models import reads_target_time, save
from recsys.models.interface import SequenceModel, torch_scorer

NUM_CALIBRATION = 512


def calibration_histories(dataset: Dataset) -> list[np.ndarray]:
    """Returns the training histories of users spread evenly over the log."""
    users = np.linspace(0, dataset.num_users - 1, min(NUM_CALIBRATION, dataset.num_users))
    histories = [dataset.history(u)[: dataset.train_length_U[u]] for u in users.astype(int)]
    return [history for history in histories if len(history)]


def package(
    model: SequenceModel,
    directory: Path,
    dataset: Dataset,
    *,
    origin: Origin,
    seed: int,
    precision: Precision = "float32",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes weights, ONNX graph and report.json; returns the report.

    Everything in the report is measured on the graph that was written, by the engine that serves:
    on test, and the accuracy on validation under its name. A teacher of a kind that has no graph,
    or a model that is too large for one and not compressed yet, is measured in PyTorch: it teaches,
    and is not served.

    Args:
        extra: further entries of the report, such as "train_seconds".

    Raises:
        ValueError: graph and model disagree.
    """
    save(model, directory, items=dataset.path / ITEMS, origin=origin)
    histories = calibration_histories(dataset)
    exported = {}
    if has_graph(model) and (origin.role == "compressed" or fits_graph(model)):
        parity = export_onnx(model, directory, histories=histories, precision=precision)
        exported = {"export": {"precision": precision, **parity}}
        seal_model(directory)
        score = OnnxModel(directory).scores
    else:
        score = torch_scorer(model)
    num_parameters = sum(p.numel() for p in model.parameters())
    validation = evaluate_scorer(score, dataset, "validation", seed=seed)
    report = {
        **evaluate_scorer(score, dataset, "test", seed=seed),
        **cost(directory, dataset, "test"),
        "num_parameters": num_parameters,
        "track": "target's time given" if reads_target_time(model.config) else "history only",
        **(extra or {}),
        **exported,
        "validation": {k: v for k, v in validation.items() if "@" in k or k == "mrr"},
    }
    write_report(directory, report)
    return report
