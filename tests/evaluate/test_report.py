import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.evaluate.baselines import popularity
from recsys.evaluate.ranking import Ranking, rank_targets
from recsys.evaluate.report import (
    accuracy,
    check_catalogue,
    cost,
    evaluate_scorer,
    metrics_of,
    readable_bytes,
    row,
    sample_histories,
    table,
    update_report,
    write_report,
)

CUTOFFS = (1, 5, 10, 20, 50)
METRICS = [f"{m}@{k}" for m in ("ndcg", "hr") for k in CUTOFFS] + ["mrr", "coverage@10"]


def by_hand() -> Ranking:
    """Ranks 0, 1, 3 and 60 of four users, whose lists hold items 1 to 4."""
    top_UK = np.tile(np.array([[1, 2, 3, 4, 0, 0, 0, 0, 0, 0]]), (4, 1))
    return Ranking(np.arange(4), np.array([0, 1, 3, 60]), top_UK, 2)


def test_metrics_by_hand():
    report = metrics_of(by_hand(), num_items=8, seed=0)
    assert report["hr@1"] == 0.25
    assert report["hr@5"] == report["hr@50"] == 0.75
    assert report["ndcg@10"] == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(5)) / 4)
    assert report["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 61) / 4)
    assert report["coverage@10"] == 0.5
    assert (report["num_users"], report["num_repeat_targets"]) == (4, 2)


def test_every_metric_has_an_interval_round_it(walks):
    report = evaluate_scorer(popularity(walks), walks, "test", seed=0)
    for name in METRICS:
        low, high = report[f"{name}_interval"]
        assert low <= report[name] <= high


def test_a_report_says_how_it_was_measured_and_is_json(walks):
    report = evaluate_scorer(popularity(walks), walks, "validation", seed=7)
    assert (report["split"], report["seed"]) == ("validation", 7)
    assert report["protocol"] == "full-ranking, seen items removed"
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_keeping_seen_items_is_a_protocol_of_its_own(walks):
    report = evaluate_scorer(popularity(walks), walks, "test", seed=0, keep_seen=True)
    assert report["protocol"] == "full-ranking, seen items kept"


def test_targets_that_training_never_met_are_reported_apart(make_dataset):
    # The test targets are 3, 5, 1 and 4; training meets 1, 2 and 5.
    dataset = make_dataset([[1, 2, 3], [2, 3, 5], [5, 2, 1], [1, 2, 4]])
    report = evaluate_scorer(popularity(dataset), dataset, "test", seed=0)
    assert (report["cold"]["num_users"], report["warm"]["num_users"]) == (2, 2)
    both = [report[part]["ndcg@10"] for part in ("cold", "warm")]
    assert report["ndcg@10"] == pytest.approx(np.mean(both))
    assert both[0] < both[1]
    low, high = report["cold"]["hr@10_interval"]
    assert low <= report["cold"]["hr@10"] <= high
    warm = make_dataset([[1, 2, 3, 4], [3, 1, 2, 4], [4, 2, 1, 3]], name="warm")
    assert "cold" not in evaluate_scorer(popularity(warm), warm, "test", seed=0)


def test_the_same_seed_gives_the_same_report(walks):
    one, other = (evaluate_scorer(popularity(walks), walks, "test", seed=1) for _ in range(2))
    assert one == other


def test_nobody_to_evaluate_is_an_error(make_dataset):
    dataset = make_dataset([[1, 2]])
    ranking = rank_targets(popularity(dataset), dataset, "test")
    with pytest.raises(ValueError, match="no user has a target"):
        accuracy(ranking, dataset, "test", seed=0)


def test_histories_for_latency_are_those_before_the_targets(make_dataset):
    dataset = make_dataset([[1, 2, 3], [4, 5], [5, 4, 3, 2]])
    assert [h.tolist() for h in sample_histories(dataset, "test")] == [[1, 2], [5, 4, 3]]


def test_weights_without_a_graph_have_a_size_and_no_latency(tmp_path, walks):
    (tmp_path / "model.safetensors").write_bytes(bytes(10))
    measured = cost(tmp_path, walks, "test")
    assert measured["size_bytes"] == 10
    assert "latency_ms" not in measured


def test_a_model_of_other_items_is_refused(tmp_path, walks):
    ids = walks.item_ids.to_pylist()
    pq.write_table(pa.table({"item_id": ids}), tmp_path / "items.parquet")
    check_catalogue(tmp_path, walks)
    pq.write_table(pa.table({"item_id": ids[::-1]}), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="different items"):
        check_catalogue(tmp_path, walks)


def test_two_splits_measured_at_once_are_both_kept(tmp_path, walks):
    directory = tmp_path / "model"
    directory.mkdir()
    report = evaluate_scorer(popularity(walks), walks, "test", seed=0)

    def measure(split: str) -> None:
        for number in range(50):
            update_report(directory, {**report, "split": split, "seed": number})

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(measure, split) for split in ("test", "validation")]:
            done.result()
    kept = json.loads((directory / "report.json").read_text())
    assert (kept["seed"], kept["validation"]["seed"]) == (49, 49)
    assert [path.name for path in directory.iterdir()] == ["report.json"]


def test_update_keeps_what_else_a_report_says(tmp_path, walks):
    write_report(tmp_path, {"train_seconds": 3.5, "ndcg@10": 0.0, "split": "test"})
    reports = {
        name: evaluate_scorer(popularity(walks), walks, split, seed=0, keep_seen=keep_seen)
        for name, split, keep_seen in (
            ("test", "test", False),
            ("validation", "validation", False),
            ("test, seen items kept", "test", True),
        )
    }
    for report in reports.values():
        update_report(tmp_path, report)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found.pop("validation") == reports["validation"]
    assert found.pop("test, seen items kept") == reports["test, seen items kept"]
    assert found == {"train_seconds": 3.5, **reports["test"]}


TEACHER = {
    "name": "teacher",
    "ndcg@10": 0.2,
    "ndcg@10_interval": [0.19, 0.21],
    "hr@10": 0.3,
    "size_bytes": 2**21,
    "latency_ms_p50": 1.5,
}


def test_table_is_aligned_and_relates_every_row_to_the_teacher():
    student = {**TEACHER, "name": "student", "ndcg@10": 0.19, "size_bytes": 2**17}
    baseline = {**TEACHER, "name": "popularity", "size_bytes": None, "latency_ms_p50": None}
    assert table([baseline, TEACHER, student]).splitlines() == [
        "model       NDCG@10  95 % interval   HR@10       size  p50 ms  of teacher  smaller",
        "popularity   0.2000  0.1900-0.2100  0.3000          -       -      100.0%        -",
        "teacher      0.2000  0.1900-0.2100  0.3000   2.00 MiB    1.50      100.0%     1.0x",
        "student      0.1900  0.1900-0.2100  0.3000  128.0 KiB    1.50       95.0%    16.0x",
    ]


def test_table_without_a_teacher_gives_no_ratios():
    lines = table([{**TEACHER, "name": "compressed"}]).splitlines()
    assert lines[1].split()[-5:] == ["2.00", "MiB", "1.50", "-", "-"]


def test_a_teacher_that_knows_nothing_gives_no_ratios():
    lines = table([{**TEACHER, "ndcg@10": 0.0}]).splitlines()
    assert lines[1].split()[-2:] == ["-", "1.0x"]


def test_row_of_a_report_with_and_without_costs():
    report = {"ndcg@10": 0.1, "ndcg@10_interval": [0.0, 0.2], "hr@10": 0.2}
    assert row("popularity", report) == {
        "name": "popularity",
        **report,
        "size_bytes": None,
        "latency_ms_p50": None,
    }
    costs = {"size_bytes": 5, "latency_ms": {"batch_1": {"p50": 0.3, "p99": 1.0}}}
    assert row("student", {**report, **costs})["latency_ms_p50"] == 0.3


def test_sizes_as_people_read_them():
    assert readable_bytes(1536) == "1.5 KiB"
    assert readable_bytes(3 * 2**20) == "3.00 MiB"
