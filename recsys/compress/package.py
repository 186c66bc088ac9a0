"""From a trained model to a complete model directory: weights, graph, report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recsys.checkpoint import ITEMS, seal_model
from recsys.compress import Recipe
from recsys.compress.export import export_onnx
from recsys.compress.graph import Precision
from recsys.data.sequences import Dataset
from recsys.evaluate.engine import OnnxModel
from recsys.evaluate.report import evaluate_scorer, report_model, write_report
from recsys.models import save
from recsys.models.interface import SequenceModel

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
    role: str,
    seed: int,
    precision: Precision = "float32",
    recipe: Recipe = (),
    parents: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes weights, ONNX graph and report.json; returns the report.

    Everything in the report is measured on the graph that was written, by the engine that serves:
    on test, and the accuracy on validation under its name.

    Args:
        recipe: the steps that made the model, for its config.json.
        extra: further entries of the report, such as "train_seconds".

    Raises:
        ValueError: graph and model disagree.
    """
    save(model, directory, items=dataset.path / ITEMS, role=role, parents=parents, recipe=recipe)
    histories = calibration_histories(dataset)
    parity = export_onnx(model, directory, histories=histories, precision=precision)
    seal_model(directory)
    num_parameters = sum(p.numel() for p in model.parameters())
    validation = evaluate_scorer(OnnxModel(directory).scores, dataset, "validation", seed=seed)
    report = {
        **report_model(directory, dataset, split="test", seed=seed),
        "num_parameters": num_parameters,
        **(extra or {}),
        "export": {"precision": precision, **parity},
        "validation": {k: v for k, v in validation.items() if "@" in k or k == "mrr"},
    }
    write_report(directory, report)
    return report
