"""From clean rows, grouped by user into a few files, to the dataset."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import to_json
from recsys.data.schema import ITEM, ORDER, PLACE, SCHEMA_VERSION, TIME, USER, PrepareConfig
from recsys.data.sequences import ITEMS, MANIFEST, Sequence, write_sequences
from recsys.data.split import assign, cut_times
from recsys.data.vocabulary import write_items
from recsys.files import write_json

KEYS = [USER, TIME, ORDER, PLACE]


class Grouped(NamedTuple):
    """A file of clean rows, all rows of a user in it, in order."""

    path: Path
    num_duplicates: int


def sort_and_drop_duplicates(rows: pa.Table, drop: bool) -> tuple[pa.Table, int]:
    """Returns rows by user, time, order and place in the log, and how many repeats were dropped.

    A repeat has the user, item, time and order of a row before it.
    """
    rows = rows.sort_by([(key, "ascending") for key in KEYS])
    if not drop or not len(rows):
        return rows, 0
    frame = rows.select([USER, ITEM, TIME, ORDER]).to_pandas()
    kept = rows.filter(pa.array(~frame.duplicated().to_numpy()))
    return kept, len(rows) - len(kept)


def core(tables: list[pa.Table], k: int, min_length: int) -> list[pa.Table]:
    """Returns the rows of users and items that have at least k rows among those returned, and of
    users that have at least `min_length`."""
    while True:
        before = sum(len(table) for table in tables)
        items = _frequent(tables, ITEM, k)
        users = _frequent(tables, USER, max(k, min_length))
        tables = [
            table.filter(
                pc.and_(pc.is_in(table[ITEM], value_set=items), pc.is_in(table[USER], users))
            )
            for table in tables
        ]
        if sum(len(table) for table in tables) == before:
            return tables


def _frequent(tables: list[pa.Table], column: str, at_least: int) -> pa.Array:
    counts: Counter[str] = Counter()
    for table in tables:
        found = pc.value_counts(table[column].combine_chunks())
        counts.update(
            dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True))
        )
    return pa.array([key for key, n in counts.items() if n >= at_least], pa.string())


def build_dataset(
    directory: Path,
    config: PrepareConfig,
    grouped: list[Grouped],
    *,
    item_table: pa.Table | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Writes sequences, items and manifest into `directory` and returns the manifest.

    Raises:
        ValueError: nothing is left.
    """
    tables = [pq.read_table(part.path, memory_map=True) for part in grouped]
    tables = core(tables, config.k_core, config.min_length)
    if not any(len(table) for table in tables):
        raise ValueError("no interaction is left after cleaning: see k_core, min_length, the log")
    unique = [pc.unique(table[ITEM]).to_numpy(zero_copy_only=False) for table in tables]
    item_ids = np.unique(np.concatenate(unique).astype(str))
    cuts = cut_times(config.split, np.concatenate([t[TIME].to_numpy() for t in tables]))
    counts_V = np.zeros(len(item_ids) + 1, np.int64)
    num_users = num_interactions = 0
    for number, table in enumerate(tables):
        sequences = _sequences(table, item_ids, config, cuts)
        for sequence in sequences:
            np.add.at(counts_V, sequence.items[: sequence.train_length], 1)
        write_sequences(directory / f"sequences-{number:05d}.arrow", sequences)
        num_users += len(sequences)
        num_interactions += len(table)
    write_items(directory / ITEMS, item_ids, counts_V, item_table)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "num_users": num_users,
        "num_items": len(item_ids),
        "num_interactions": num_interactions,
        "num_duplicates": sum(part.num_duplicates for part in grouped),
        "num_items_never_seen": len(item_table) - len(item_ids) if item_table else 0,
        "split": to_json(config.split),
        **facts,
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def _sequences(
    table: pa.Table, item_ids: np.ndarray, config: PrepareConfig, cuts: tuple[int, int]
) -> list[Sequence]:
    if not len(table):
        return []
    users = table[USER].to_numpy(zero_copy_only=False)
    items = np.searchsorted(item_ids, table[ITEM].to_numpy(zero_copy_only=False).astype(str)) + 1
    times = table[TIME].to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
    stops = [*starts[1:], len(users)]
    return [
        Sequence(
            users[start],
            items[start:stop].astype(np.int32),
            times[start:stop],
            *assign(config.split, times[start:stop], cuts),
        )
        for start, stop in zip(starts, stops, strict=True)
    ]
