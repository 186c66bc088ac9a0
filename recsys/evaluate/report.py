"""The report of a model: the same keys for every model, everything in it measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recsys.checkpoint import GRAPH, ITEMS
from recsys.data.sequences import Dataset
from recsys.evaluate.cost import hardware, latency_ms, size_bytes, versions
from recsys.evaluate.engine import OnnxModel
from recsys.evaluate.metrics import (
    bootstrap_interval,
    coverage,
    hit_rate,
    ndcg,
    reciprocal_rank,
)
from recsys.evaluate.ranking import Ranking, Scorer, Split, rank_targets
from recsys.files import alone, read_json, write_json

REPORT = "report.json"
CUTOFFS = (1, 5, 10, 20, 50)
PROTOCOL = "full-ranking, seen items removed"
PROTOCOL_WITH_SEEN = "full-ranking, seen items kept"
NUM_LATENCY_HISTORIES = 500
NUM_COVERAGE_SAMPLES = 100


def metrics_of(ranking: Ranking, num_items: int, *, seed: int) -> dict[str, Any]:
    """Returns the metrics with their intervals; resampled lists for coverage.

    Raises:
        ValueError: there is no user to evaluate.
    """
    ranks_U = ranking.ranks_U
    if not len(ranks_U):
        why = "sequences are too short for this split"
        if ranking.num_repeat_targets:
            why = "all had met theirs before; rank seen items, too, with --keep-seen"
        raise ValueError(f"no user has a target to rank: {why}")
    values = {f"ndcg@{k}": ndcg(ranks_U, k) for k in CUTOFFS}
    values |= {f"hr@{k}": hit_rate(ranks_U, k) for k in CUTOFFS}
    values["mrr"] = reciprocal_rank(ranks_U)
    report: dict[str, Any] = {}
    for name, values_U in values.items():
        report[name] = float(values_U.mean())
        report[f"{name}_interval"] = list(bootstrap_interval(values_U, seed=seed))
    report["coverage@10"] = coverage(ranking.top_UK, num_items)
    report["coverage@10_interval"] = _coverage_interval(ranking.top_UK, num_items, seed)
    report["num_users"] = len(ranks_U)
    report["num_repeat_targets"] = ranking.num_repeat_targets
    return report


def _coverage_interval(top_UK: np.ndarray, num_items: int, seed: int) -> list[float]:
    """Returns the spread of coverage over resampled users, laid round its value.

    A sample repeats users, so its lists cover less than those of all users: the spread alone says
    how sure the value is, and the percentiles themselves would lie below it.
    """
    generator = np.random.default_rng(seed)
    size = len(top_UK)
    samples = (generator.integers(0, size, size) for _ in range(NUM_COVERAGE_SAMPLES))
    values = np.array([coverage(top_UK[sample], num_items) for sample in samples])
    spread = np.quantile(values - values.mean(), [0.025, 0.975])
    return np.clip(coverage(top_UK, num_items) + spread, 0, 1).tolist()


def accuracy(
    ranking: Ranking, dataset: Dataset, split: Split, *, seed: int, keep_seen: bool = False
) -> dict[str, Any]:
    """Returns the accuracy part of a report: the metrics and how they were measured.

    Raises:
        ValueError: there is no user to evaluate.
    """
    return {
        **metrics_of(ranking, dataset.num_items_with_padding - 1, seed=seed),
        **_cold_and_warm(ranking, dataset, split, seed),
        "protocol": PROTOCOL_WITH_SEEN if keep_seen else PROTOCOL,
        "split": split,
        "seed": seed,
    }


def _cold_and_warm(
    ranking: Ranking, dataset: Dataset, split: Split, seed: int
) -> dict[str, dict[str, Any]]:
    """Returns the metrics of targets that training has never met, and of the others apart; nothing
    where all targets are of one kind."""
    index_U = dict(zip(*dataset.targets(split), strict=True))
    target_U = [dataset.history(user)[index_U[user]] for user in ranking.users_U]
    cold_U = dataset.item_counts_V[target_U] == 0
    if cold_U.all() or not cold_U.any():
        return {}
    return {
        "cold": _short_metrics(ranking.ranks_U[cold_U], seed),
        "warm": _short_metrics(ranking.ranks_U[~cold_U], seed),
    }


def _short_metrics(ranks_U: np.ndarray, seed: int) -> dict[str, Any]:
    report: dict[str, Any] = {"num_users": len(ranks_U)}
    for name, values_U in (("ndcg@10", ndcg(ranks_U, 10)), ("hr@10", hit_rate(ranks_U, 10))):
        report[name] = float(values_U.mean())
        report[f"{name}_interval"] = list(bootstrap_interval(values_U, seed=seed))
    return report


def evaluate_scorer(
    score: Scorer, dataset: Dataset, split: Split, *, seed: int, keep_seen: bool = False
) -> dict[str, Any]:
    """Returns the accuracy part of a report, for anything that scores histories."""
    ranking = rank_targets(score, dataset, split, keep_seen=keep_seen, progress=True)
    return accuracy(ranking, dataset, split, seed=seed, keep_seen=keep_seen)


def cost(directory: Path, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Returns the other part: bytes, milliseconds on the histories of `split`, and this machine.

    Without a graph there is nothing to serve, and no latency.
    """
    measured: dict[str, Any] = {"size_bytes": size_bytes(directory)}
    if (directory / GRAPH).exists():
        measured["latency_ms"] = latency_ms(OnnxModel(directory), sample_histories(dataset, split))
    return {**measured, "hardware": hardware(), "versions": versions()}


def check_catalogue(directory: Path, dataset: Dataset) -> None:
    """Checks that a model's item indexes mean what the dataset's do.

    Raises:
        ValueError: the model directory has other items than the dataset.
    """
    ids = pq.read_table(directory / ITEMS, columns=["item_id"])["item_id"]
    if not ids.equals(dataset.item_ids):
        raise ValueError(
            f"{directory} and {dataset.path} have different items: "
            "a model goes with the dataset that it was trained on"
        )


def sample_histories(dataset: Dataset, split: Split) -> list[np.ndarray]:
    """Returns histories before the targets of users spread evenly over the log."""
    users_U, targets_U = dataset.targets(split)
    some = np.linspace(0, len(users_U) - 1, min(NUM_LATENCY_HISTORIES, len(users_U))).astype(int)
    pairs = zip(users_U[some].tolist(), targets_U[some].tolist(), strict=True)
    return [dataset.history(user)[:target] for user, target in pairs]


def write_report(directory: Path, report: dict[str, Any]) -> None:
    """Writes report.json into a model directory."""
    write_json(directory / REPORT, report)


def update_report(directory: Path, report: dict[str, Any]) -> None:
    """Writes a new measurement into a model directory's report, and keeps what else it says.

    The test split by the usual protocol is the report; any other measurement stands in it under
    its own name: "validation", or "test, seen items kept".
    """
    path = directory / REPORT
    name = report["split"]
    if report["protocol"] != PROTOCOL:
        name = f"{name}, {report['protocol'].partition(', ')[2]}"
    measured = report if name == "test" else {name: report}
    # Another split may be measured beside this. The lock is beside the directory, not in it.
    whole = directory.resolve()
    with alone(whole.with_name(f"{whole.name}.report")):
        old = read_json(path) if path.exists() else {}
        write_report(directory, {**old, **measured})


def row(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """Returns a report as a row of the summary and its table; None for what has no cost."""
    latency = report.get("latency_ms")
    return {
        "name": name,
        **{key: report[key] for key in ("ndcg@10", "ndcg@10_interval", "hr@10")},
        "size_bytes": report.get("size_bytes"),
        "latency_ms_p50": latency["batch_1"]["p50"] if latency else None,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows of the summary as aligned text; ratios are to the row named "teacher"."""
    teacher = next((row for row in rows if row["name"] == "teacher"), None)
    head = ["model", "NDCG@10", "95 % interval", "HR@10", "size", "p50 ms", "of teacher", "smaller"]
    lines = [head, *(_cells(row, teacher) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: dict[str, Any], teacher: dict[str, Any] | None) -> list[str]:
    low, high = row["ndcg@10_interval"]
    size, latency = row.get("size_bytes"), row.get("latency_ms_p50")
    share = f"{row['ndcg@10'] / teacher['ndcg@10']:.1%}" if teacher and teacher["ndcg@10"] else "-"
    smaller = f"{teacher['size_bytes'] / size:.1f}x" if teacher and size else "-"
    return [
        row["name"],
        f"{row['ndcg@10']:.4f}",
        f"{low:.4f}-{high:.4f}",
        f"{row['hr@10']:.4f}",
        readable_bytes(size) if size else "-",
        f"{latency:.2f}" if latency else "-",
        share,
        smaller,
    ]


def readable_bytes(size: int) -> str:
    """Returns a size as people read it."""
    return f"{size / 2**20:.2f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
