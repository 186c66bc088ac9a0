"""The one place where external item ids meet row numbers: `items.parquet`."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from recsys.data.clean import as_text
from recsys.data.schema import ITEM
from recsys.data.sequences import POPULARITY

pc: Any = pyarrow.compute  # its functions are made when it is imported


def read_item_table(table: pa.Table, item_column: str) -> pa.Table:
    """Returns the item table with its ids as text in the column item_id, each once.

    Raises:
        ValueError: the column is missing, an id is missing or occurs twice, or another column
            cannot go with a dataset.
    """
    if item_column not in table.column_names:
        names = ", ".join(table.column_names)
        raise ValueError(f"the item table has no column {item_column!r}; it has {names}")
    try:
        ids = as_text(table[item_column])
    except pa.ArrowException as error:
        raise ValueError(
            f"the item table's {item_column!r} is no column of ids ({error})"
        ) from None
    if ids.null_count:
        raise ValueError(f"the item table has {ids.null_count} rows without an id")
    counts = pc.value_counts(ids)
    repeated = [entry["values"] for entry in counts.to_pylist() if entry["counts"] > 1]
    if repeated:
        raise ValueError(f"the item table has {len(repeated)} ids twice, such as {repeated[0]!r}")
    others = table.select([n for n in table.column_names if n not in (item_column, ITEM)])
    if POPULARITY in others.column_names:
        raise ValueError(
            f"the item table has a column {POPULARITY!r}, which in a dataset are counts of "
            "training: call it otherwise"
        )
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), others.schema).close()
    except pa.ArrowException as error:
        raise ValueError(
            f"the item table has a column that Parquet cannot hold ({error}): leave it out"
        ) from None
    return pa.table({ITEM: ids, **{name: others[name] for name in others.column_names}})


def align(item_ids: pa.Array, table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Returns columns of the item table for `item_ids`, in their order; null where it has none."""
    rows = pc.index_in(item_ids, value_set=table[ITEM].combine_chunks(), skip_nulls=True)
    return pa.table({name: table[name].take(rows) for name in columns})


def write_items(
    path: Path,
    item_ids: pa.Array,
    counts_V: np.ndarray,
    table: pa.Table | None,
    leave_out: Collection[str] = (),
) -> None:
    """Writes `items.parquet`: row 0 is padding, row i the item of index i.

    Args:
        item_ids: external ids of the items 1, 2, ...
        counts_V: how often each item occurs in training, with the padding row.
        table: the item table, whose other columns are taken along.
        leave_out: but for these.
    """
    ids = pa.concat_arrays([pa.nulls(1, pa.string()), item_ids])
    columns = {ITEM: ids, POPULARITY: pa.array(counts_V, pa.int64())}
    if table is not None:
        wanted = [n for n in table.column_names if n not in columns and n not in leave_out]
        columns |= dict(zip(wanted, align(ids, table, wanted).columns, strict=True))
    pq.write_table(pa.table(columns), path)
