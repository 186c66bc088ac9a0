from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from benchmarks.rows import Results, Subject, replace_block, table, values_of
from recsys.files import read_json

SUBJECT = Subject("synthetic", "recsys", "dropout=0.1", 0)
KEYS = (
    "benchmark dataset system variant metric value unit seed command hardware versions commit date"
)


def test_rows_are_read_as_they_were_written(tmp_path):
    results = Results("teacher", tmp_path)
    results.put(SUBJECT, "a command", {"ndcg@10": (0.25, ""), "train_seconds": (3.0, "s")})
    rows = results.rows()
    assert [(row.metric, row.value, row.unit) for row in rows] == [
        ("ndcg@10", 0.25, ""),
        ("train_seconds", 3.0, "s"),
    ]
    assert read_json(tmp_path / "teacher.json") == [asdict(row) for row in rows]
    assert set(asdict(rows[0])) == set(KEYS.split())
    assert all(row.subject == SUBJECT for row in rows)


def test_what_is_measured_again_takes_the_place_of_what_was(tmp_path):
    results = Results("teacher", tmp_path)
    other = SUBJECT._replace(seed=1)
    results.put(SUBJECT, "a command", {"ndcg@10": (0.25, ""), "hr@10": (0.5, "")})
    results.put(other, "a command", {"ndcg@10": (0.35, "")})
    results.put(SUBJECT, "a command", {"ndcg@10": (0.3, "")})
    assert values_of(results.rows(), "ndcg@10") == [0.35, 0.3]
    assert values_of(results.rows(), "ndcg@10", seed=0) == [0.3]
    assert values_of(results.rows(), "hr@10") == []


def test_benchmarks_side_by_side_lose_no_rows(tmp_path):
    results = Results("teacher", tmp_path)
    with ThreadPoolExecutor(4) as threads:  # a lock is of the open file, not of the process
        for seed in range(12):
            one = SUBJECT._replace(seed=seed)
            threads.submit(results.put, one, "a command", {"ndcg@10": (0.1, "")})
    assert {row.seed for row in results.rows()} == set(range(12))


def test_only_the_same_command_has_measured_a_subject(tmp_path):
    results = Results("teacher", tmp_path)
    assert not results.has(SUBJECT, "a command")
    results.put(SUBJECT, "a command", {"ndcg@10": (0.25, "")})
    assert results.has(SUBJECT, "a command")
    assert not results.has(SUBJECT, "another command")
    assert not results.has(SUBJECT._replace(variant="preset"), "a command")


def test_a_block_is_replaced_and_nothing_else():
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\n"
    once = replace_block(text, "a", "new")
    assert once == "before\n<!-- a -->\nnew\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\n"
    assert replace_block(once, "a", "new") == once


@pytest.mark.parametrize("text", ["", "<!-- a -->", "<!-- /a -->\n<!-- a -->"])
def test_a_block_without_both_markers_is_refused(text):
    with pytest.raises(ValueError, match="no block to write to"):
        replace_block(text, "a", "new")


def test_tables_are_markdown():
    assert table(["x", "y"], [["a", "1"]]) == "| x | y |\n| --- | --: |\n| a | 1 |"
