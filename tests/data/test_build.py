"""From clean rows to sequences, by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data import build
from recsys.data.build import Grouped, build_dataset, core, sort_and_drop_duplicates
from recsys.data.schema import PrepareConfig
from recsys.data.sequences import Dataset, Sequence


def _rows(*rows: tuple, order=None) -> pa.Table:
    """Returns clean rows of (user, item, time), in the order of the log."""
    users, items, times = zip(*rows, strict=True)
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": pa.array(times, pa.int64()),
            "fraction": np.zeros(len(rows)),
            "order": pa.array(order or [None] * len(rows), pa.int64()),
            "order_fraction": np.zeros(len(rows)),
            "place": pa.array(range(len(rows)), pa.int64()),
        }
    )


def _items(table: pa.Table) -> list[str]:
    return table["item_id"].to_pylist()


def test_time_then_order_then_the_logs_order():
    rows = _rows(("v", "z", 0), ("u", "a", 2), ("u", "b", 1), ("u", "c", 2), ("u", "d", 1))
    assert _items(sort_and_drop_duplicates(rows, True)[0]) == ["b", "d", "a", "c", "z"]
    rows = _rows(("u", "a", 2), ("u", "b", 1), ("u", "c", 2), order=[9, 5, 3])
    assert _items(sort_and_drop_duplicates(rows, True)[0]) == ["b", "c", "a"]


def test_a_repeat_has_the_same_user_item_and_time():
    rows = _rows(("u", "a", 1), ("u", "a", 1), ("u", "a", 2), ("u", "b", 1), ("v", "a", 1))
    kept, dropped = sort_and_drop_duplicates(rows, True)
    assert (_items(kept), dropped) == (["a", "b", "a", "a"], 1)
    kept, dropped = sort_and_drop_duplicates(rows, False)
    assert (len(kept), dropped) == (5, 0)


def test_k_core_goes_on_until_nothing_changes():
    # c goes (1 row), so w has 1 row and goes, so b has 1 row and goes; u and v keep a and d.
    rows = [("u", "a", 1), ("u", "d", 2), ("u", "b", 3), ("v", "a", 1), ("v", "d", 2)]
    tables = [_rows(*rows), _rows(("w", "b", 1), ("w", "c", 2))]
    left = core(tables, 2, 1)
    assert [_items(table) for table in left] == [["a", "d", "a", "d"], []]
    assert [len(table) for table in core(tables, 0, 3)] == [3, 0]


def _build(tmp_path, config, *tables, item_table=None):
    grouped = []
    for number, table in enumerate(tables):
        path = tmp_path / f"part-{number}.parquet"
        pq.write_table(sort_and_drop_duplicates(table, True)[0], path)
        grouped.append(Grouped(path, number))
    manifest = build_dataset(tmp_path, config, grouped, item_table=item_table, facts={"x": 1})
    return manifest, Dataset.open(tmp_path)


LOG = [("u", "b", 1), ("u", "a", 2), ("u", "c", 3), ("t", "c", 5), ("v", "a", 1), ("v", "b", 0)]


@pytest.mark.parametrize("rows_per_file", [100, 3])
def test_dataset_by_hand(tmp_path, monkeypatch, rows_per_file):
    monkeypatch.setattr(build, "ROWS_PER_FILE", rows_per_file)
    item_table = pa.table({"item_id": ["z", "c", "b", "a"]})
    parts = _rows(*LOG[:3]), _rows(*LOG[3:])
    manifest, dataset = _build(tmp_path, PrepareConfig(), *parts, item_table=item_table)
    assert dataset.user_ids.to_pylist() == ["t", "u", "v"]
    assert dataset.item_ids.to_pylist() == [None, "a", "b", "c"]
    histories = [dataset.history(user).tolist() for user in range(3)]
    assert histories == [[3], [2, 1, 3], [2, 1]]
    assert dataset.train_length_U.tolist() == [1, 1, 2]
    assert dataset.item_counts_V.tolist() == [0, 1, 2, 1]
    wanted = {"num_users": 3, "num_items": 3, "num_interactions": 6, "num_duplicates": 1, "x": 1}
    assert manifest.items() >= {**wanted, "num_items_never_seen": 1}.items()
    assert len(list(tmp_path.glob("sequences-*"))) == (1 if rows_per_file == 100 else 2)


def test_items_that_nobody_has_met_are_in_the_catalogue_where_asked(tmp_path):
    item_table = pa.table({"item_id": ["z", "c", "b", "a"]})
    config = PrepareConfig(keep_unseen_items=True)
    manifest, dataset = _build(tmp_path, config, _rows(*LOG), item_table=item_table)
    assert dataset.item_ids.to_pylist() == [None, "a", "b", "c", "z"]
    assert dataset.item_counts_V.tolist() == [0, 1, 2, 1, 0]
    assert (manifest["num_items"], manifest["num_items_never_seen"]) == (4, 1)


def test_what_is_too_rare_is_counted_and_was_seen(tmp_path):
    item_table = pa.table({"item_id": ["z", "c", "b", "a"]})
    log = [*LOG[:2], *LOG[4:], ("w", "c", 7)]
    manifest, dataset = _build(
        tmp_path, PrepareConfig(k_core=2), _rows(*log), item_table=item_table
    )
    assert dataset.item_ids.to_pylist() == [None, "a", "b"]
    assert (manifest["num_rare"], manifest["num_items_never_seen"]) == (1, 1)


def test_cold_items_leave_training_and_stay_as_targets(tmp_path):
    # Items are numbered a b c d e; of five, 40 % are two.
    log = [(user, item, time) for user in "uv" for time, item in enumerate("abcde")]
    log += [("w", "e", 0), ("w", "a", 1), ("w", "d", 2)]
    manifest, dataset = _build(tmp_path, PrepareConfig(cold_items=0.4, cold_seed=3), _rows(*log))
    cold = sorted(build.cold_items(5, 0.4, 3).tolist())
    assert (manifest["num_cold_items"], len(cold)) == (2, 2)
    assert cold != sorted(build.cold_items(5, 0.4, 4).tolist())
    assert set(np.flatnonzero(dataset.item_counts_V == 0)) == {0, *cold}
    for user, whole in enumerate(([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [5, 1, 4])):
        training = [item for item in whole[:-2] if item not in cold]
        assert dataset.history(user).tolist() == training + whole[-2:]
        assert dataset.train_length_U[user] == len(training)
        assert dataset.test_index_U[user] == len(training) + 1
        assert dataset.validation_index_U[user] == (len(training) or -1)


def test_cold_items_of_a_sequence_by_hand():
    sequence = Sequence("u", np.array([4, 1, 4, 2, 4, 3]), np.arange(6), 4, 4, 5)
    cut = build.without_in_training(sequence, np.array([4]))
    assert (cut.items.tolist(), cut.timestamps.tolist()) == ([1, 2, 4, 3], [1, 3, 4, 5])
    assert cut[3:] == (2, 2, 3)
    assert build.without_in_training(sequence, np.array([3])) is sequence
    assert build.without_in_training(sequence, np.array([1, 2, 4]))[3:] == (0, -1, 1)


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no interaction is left"):
        _build(tmp_path, PrepareConfig(k_core=9), _rows(*LOG))
    with pytest.raises(ValueError, match="no interaction is left"):
        _build(tmp_path, PrepareConfig())
