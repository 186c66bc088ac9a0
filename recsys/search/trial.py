"""One trial: train a student on the teacher's answers, compress it, measure it."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.checkpoint import Origin
from recsys.compress import compress
from recsys.compress.package import calibration_histories, package
from recsys.compress.recover import recovery
from recsys.compress.shrink import Start, write_initial
from recsys.config import to_json
from recsys.data.sequences import Dataset
from recsys.distill.answers import LiveTeacher
from recsys.distill.objective import Distillation
from recsys.files import alone, fingerprint, read_json, write_json
from recsys.search.pareto import ACCURACY, LATENCY, SIZE
from recsys.search.space import Point
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit

ROW, CHECKPOINTS = "row.json", "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Material:
    """What every trial works with."""

    dataset: Path
    """The prepared dataset."""
    teacher: Path | LiveTeacher
    """The directory of the teacher's answers, or the teacher."""
    start: Start
    """Where students start."""
    start_from: Path
    """The model directory of the teacher that they start as, if they do."""
    train: TrainConfig
    """How students are trained."""


def measure(point: Point, material: Material, directory: Path) -> dict[str, Any]:
    """Returns the row of a point; one that was measured before is not measured again.

    Args:
        directory: where the point's model directory goes, under its name.
    """
    output = directory / point.name
    with alone(output):  # the sampler may propose a point twice at a time
        if not (output / ROW).exists():
            partial = directory / f"{point.name}.partial"
            partial.mkdir(parents=True, exist_ok=True)
            report = _build(point, material, partial)
            write_json(partial / ROW, row_of(point.name, report, config=to_json(point)))
            partial.rename(output)
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
    return read_json(output / ROW)


def row_of(name: str, report: Mapping[str, Any], *, config: Any) -> dict[str, Any]:
    """Returns the row of a measured model; a teacher without a graph has no latency."""
    return {
        "name": name,
        ACCURACY: report["validation"]["ndcg@10"],
        SIZE: report["size_bytes"],
        LATENCY: report["latency_ms"]["batch_1"]["p50"] if "latency_ms" in report else None,
        "config": config,
        "report": dict(report),
    }


def _parent(teacher: Path | LiveTeacher) -> dict[str, str]:
    if isinstance(teacher, LiveTeacher):
        return {"teacher": fingerprint(teacher.directory)}
    return {"targets": fingerprint(teacher)}


def _build(point: Point, material: Material, directory: Path) -> dict[str, Any]:
    dataset = Dataset.open(material.dataset)
    started = time.perf_counter()
    checkpoints = directory / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    objective = Distillation(material.teacher, point.distill, material.dataset)
    initial, _ = write_initial(
        material.start, material.start_from, point.model, dataset, checkpoints
    )
    task = Task(
        dataset=material.dataset,
        model=point.model,
        train=material.train,
        objective=objective,
        initial=initial,
    )
    fitted = fit(task, checkpoints)
    recover = recovery(material.dataset, objective, material.train, checkpoints)
    model, precision = compress(
        fitted.model, point.recipe, histories=calibration_histories(dataset), recover=recover
    )
    parents = {
        "dataset": fingerprint(material.dataset),
        **_parent(material.teacher),
        **({"teacher": fingerprint(material.start_from)} if initial else {}),
    }
    return package(
        model,
        directory,
        dataset,
        origin=Origin(
            role="compressed",
            parents=parents,
            recipe=point.recipe,
            scores_seen=not point.distill.leave_out_seen,
        ),
        seed=material.train.seed,
        precision=precision,
        extra={
            "train_seconds": round(time.perf_counter() - started, 1),
            "peak_memory_mib": fitted.peak_memory_mib,
        },
    )
