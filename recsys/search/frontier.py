"""`frontier/`: every measured point in a table, the models on the front, and a page to read."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.checkpoint import GRAPH
from recsys.data.sequences import Dataset
from recsys.evaluate.baselines import baselines
from recsys.evaluate.cost import latency_ms
from recsys.evaluate.engine import OnnxModel
from recsys.evaluate.report import (
    REPORT,
    check_catalogue,
    evaluate_scorer,
    sample_histories,
    write_report,
)
from recsys.files import read_json, write_json
from recsys.search.pareto import ACCURACY, LATENCY, choose, front, rule_of
from recsys.search.report import write_page, write_plot
from recsys.search.space import ChooseConfig
from recsys.search.trial import ROW, row_of

POINTS, MODELS, REFERENCES = "points.parquet", "models", "references.json"


@dataclass(frozen=True, kw_only=True)
class References:
    """Where the line is that points are compared with."""

    teacher: dict[str, Any]
    """The teacher's row."""
    baselines: dict[str, float]
    """NDCG@10 on validation by the baseline's name."""


def require_points(models: Sequence[Path], teacher: Path, dataset: Dataset) -> None:
    """Checks, before hours of a search, that models can be points beside what it finds, and that
    their teacher can be compared with them.

    Raises:
        ValueError: one has other items than the dataset or no metrics on validation, or a model no
            graph to be served by.
    """
    for path in (*models, teacher):
        report = read_json(path / REPORT)
        if path in models and not (path / GRAPH).exists():
            raise ValueError(
                f"{path} has no graph to serve it by, so it is no point of a frontier: "
                "leave it out of --models"
            )
        if ACCURACY.removeprefix("validation_") not in report.get("validation", {}):
            raise ValueError(f"{path / REPORT} has no metrics on validation: make its stage anew")
        check_catalogue(path, dataset)


def references(teacher: Path, dataset: Dataset) -> References:
    """Returns the rows that stand on the same axes as the points."""
    values = {
        name: evaluate_scorer(score, dataset, "validation", seed=0)["ndcg@10"]
        for name, score in baselines(dataset).items()
    }
    report = read_json(teacher / "report.json")
    return References(teacher=row_of("teacher", report, config=None), baselines=values)


def write_frontier(
    directory: Path, *, seeds: Mapping[str, Path], dataset: Dataset, references: References
) -> None:
    """Writes the points below `directory`/points and of `seeds`, and the models on the front.

    Latencies are measured again, one model after the other: trials share the machine.

    Args:
        seeds: model directories that were measured outside of the search, by name.
    """
    models = {path.parent.name: path.parent for path in sorted(directory.glob(f"points/*/{ROW}"))}
    rows = [read_json(path / ROW) for path in models.values()]
    for name, path in seeds.items():
        model = read_json(path / "config.json")["model"]
        rows.append(row_of(name, read_json(path / "report.json"), config={"model": model}))
    models |= seeds
    for row in rows:
        _measure_latency(row, models[row["name"]], dataset)
    for row, on_front in zip(rows, front(rows), strict=True):
        row["on_front"] = on_front
    _copy_models(directory / MODELS, {r["name"]: r for r in rows if r["on_front"]}, models)
    write_json(directory / REFERENCES, asdict(references))
    _write_points(directory / POINTS, rows, chosen="")


def choose_point(directory: Path, config: ChooseConfig) -> Path:
    """Marks the point that `config` asks for in the table, the picture and the page of a frontier.

    Returns:
        The point's model directory.

    Raises:
        ValueError: `directory` is not a frontier, or has no such point.
    """
    if not (directory / POINTS).exists():
        raise ValueError(f"{directory} holds no {POINTS}; run jobs.search")
    rows = _read_points(directory / POINTS)
    references = References(**read_json(directory / REFERENCES))
    accuracy = references.teacher[ACCURACY]
    chosen = choose(
        [row for row in rows if row["on_front"]],
        teacher_accuracy=accuracy,
        tolerance=config.tolerance,
        point=config.point,
    )
    rule = rule_of(
        chosen, teacher_accuracy=accuracy, tolerance=config.tolerance, point=config.point
    )
    name = chosen["name"]
    _write_points(directory / POINTS, rows, name)
    write_plot(directory / "frontier.png", rows, references.teacher, references.baselines, name)
    write_page(
        directory,
        rows,
        references.teacher,
        references.baselines,
        chosen=name,
        rule=rule,
    )
    return directory / MODELS / name


def _measure_latency(row: dict[str, Any], model: Path, dataset: Dataset) -> None:
    latency = latency_ms(OnnxModel(model), sample_histories(dataset, "validation"))
    row["report"]["latency_ms"] = latency
    row[LATENCY] = latency["batch_1"]["p50"]


def _copy_models(
    target: Path, rows: Mapping[str, Mapping[str, Any]], models: Mapping[str, Path]
) -> None:
    shutil.rmtree(target, ignore_errors=True)
    for name, row in rows.items():
        ignore = shutil.ignore_patterns(ROW, "stage.json")
        shutil.copytree(models[name], target / name, ignore=ignore)
        write_report(target / name, row["report"])


def _write_points(path: Path, rows: Sequence[Mapping[str, Any]], chosen: str) -> None:
    flat = [
        {
            **{key: value for key, value in row.items() if key not in ("config", "report")},
            "test_ndcg@10": row["report"]["ndcg@10"],
            "test_hr@10": row["report"]["hr@10"],
            "config": json.dumps(row["config"]),
            "report": json.dumps(row["report"]),
            "chosen": row["name"] == chosen,
        }
        for row in rows
    ]
    beside = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(flat), beside)
    beside.replace(path)


def _read_points(path: Path) -> list[dict[str, Any]]:
    """Returns the rows that `_write_points` was given."""
    made = ("test_ndcg@10", "test_hr@10", "chosen")
    rows = [
        {key: value for key, value in row.items() if key not in made}
        for row in pq.read_table(path).to_pylist()
    ]
    parts = ("config", "report")
    return [{**row, **{part: json.loads(row[part]) for part in parts}} for row in rows]
