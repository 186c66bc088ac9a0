"""Where external ids meet row numbers."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.vocabulary import read_item_table, write_items

ITEMS = pa.table({"film": [20, 10, 30], "title": ["B", "A", "C"], "item_id": ["x", "y", "z"]})


def test_ids_become_text_in_the_column_item_id():
    table = read_item_table(ITEMS, "film")
    assert table.to_pydict() == {"item_id": ["20", "10", "30"], "title": ["B", "A", "C"]}


@pytest.mark.parametrize(
    ("ids", "column", "message"),
    [
        (["a"], "film", "no column 'film'; it has item_id"),
        (["a", None, " "], "item_id", "2 rows without an id"),
        (["a", "b", "a"], "item_id", "1 ids twice, such as 'a'"),
    ],
)
def test_unusable_item_tables_are_refused(ids, column, message):
    with pytest.raises(ValueError, match=message):
        read_item_table(pa.table({"item_id": ids}), column)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"popularity": [9]}, "'popularity', which in a dataset"), ({"meta": [{}]}, "cannot hold")],
)
def test_other_columns_that_cannot_go_with_a_dataset_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        read_item_table(pa.table({"item_id": ["a"], **values}), "item_id")


def test_row_numbers_are_item_indices_and_row_0_is_padding(tmp_path):
    table = read_item_table(ITEMS, "film")
    write_items(tmp_path / "items.parquet", pa.array(["10", "30"]), [0, 5, 6], table)
    assert pq.read_table(tmp_path / "items.parquet").to_pydict() == {
        "item_id": [None, "10", "30"],
        "popularity": [0, 5, 6],
        "title": [None, "A", "C"],
    }
