"""From clean rows, grouped by user into a few files, to the dataset."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from recsys.config import to_json
from recsys.data.schema import (
    FRACTION,
    ITEM,
    ORDER,
    ORDER_FRACTION,
    PLACE,
    SCHEMA_VERSION,
    TIME,
    USER,
    PrepareConfig,
)
from recsys.data.sequences import ITEMS, MANIFEST, Sequence, write_sequences
from recsys.data.split import NONE, assign, cut_times
from recsys.data.vocabulary import write_items
from recsys.files import write_json

pc: Any = pyarrow.compute  # its functions are made when it is imported

KEYS = [USER, TIME, FRACTION, ORDER, ORDER_FRACTION, PLACE]
ROWS_PER_FILE = 20_000_000


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
    frame = rows.select([ITEM, *(key for key in KEYS if key != PLACE)]).to_pandas()
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
    num_rows = sum(len(table) for table in tables)
    seen = [pc.unique(table[ITEM]) for table in tables]
    tables = core(tables, config.k_core, config.min_length)
    if not any(len(table) for table in tables):
        raise ValueError("no interaction is left after cleaning: see k_core, min_length, the log")
    table = _in_order(tables)
    known = item_table[ITEM] if config.keep_unseen_items and item_table is not None else table[ITEM]
    item_ids = pc.unique(known).cast(pa.string()).sort()
    cuts = cut_times(config.cut, table[TIME].to_numpy())
    cold_N = cold_items(len(item_ids), config.cold_items, config.cold_seed)
    sequences = [
        without_in_training(sequence, cold_N)
        for sequence in _sequences(table, item_ids, config, cuts)
    ]
    _write_in_files(directory, sequences)
    counts_V = _popularity(sequences, len(item_ids))
    apart = config.content.columns_kept_apart
    write_items(directory / ITEMS, item_ids, counts_V, item_table, apart)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "num_users": len(sequences),
        "num_items": len(item_ids),
        "num_interactions": sum(len(sequence.items) for sequence in sequences),
        "num_duplicates": sum(part.num_duplicates for part in grouped),
        "num_rare": num_rows - len(table),
        "num_items_never_seen": _num_not_in(pa.concat_arrays(seen), item_table),
        "num_cold_items": len(cold_N),
        "split": to_json(config.cut),
        **facts,
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def _num_not_in(seen: pa.Array, item_table: pa.Table | None) -> int:
    if item_table is None:
        return 0
    return len(item_table) - pc.sum(pc.is_in(item_table[ITEM], value_set=seen)).as_py()


def cold_items(num_items: int, share: float, seed: int) -> np.ndarray:
    """Returns the items, drawn at random, that training is not to meet."""
    number = round(share * num_items)
    return np.random.default_rng(seed).choice(num_items, number, replace=False) + 1


def without_in_training(sequence: Sequence, cold_N: np.ndarray) -> Sequence:
    """Returns the sequence without cold items in its training part; targets need a history."""
    kept = ~np.isin(sequence.items, cold_N)
    kept[sequence.train_length :] = True
    num_left_out = int((~kept).sum())
    if num_left_out == 0:
        return sequence
    validation, test = (
        index - num_left_out if index > num_left_out else NONE
        for index in (sequence.validation_index, sequence.test_index)
    )
    return Sequence(
        sequence.user_id,
        sequence.items[kept],
        sequence.timestamps[kept],
        sequence.train_length - num_left_out,
        validation,
        test,
    )


def _in_order(tables: list[pa.Table]) -> pa.Table:
    """Returns all rows by user; so nothing shows how users were spread over files."""
    if len(tables) == 1:
        return tables[0]
    return pa.concat_tables(tables).sort_by([(key, "ascending") for key in KEYS])


def _sequences(
    table: pa.Table, item_ids: pa.Array, config: PrepareConfig, cuts: tuple[int, int]
) -> list[Sequence]:
    items = pc.index_in(table[ITEM], value_set=item_ids).to_numpy() + np.int32(1)
    times = table[TIME].to_numpy()
    codes = table[USER].combine_chunks().dictionary_encode()
    number = codes.indices.to_numpy()
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    stops = [*starts[1:], len(number)]
    return [
        Sequence(
            user,
            items[start:stop],
            times[start:stop],
            *assign(config.cut, times[start:stop], cuts),
        )
        for user, start, stop in zip(codes.dictionary.to_pylist(), starts, stops, strict=True)
    ]


def _write_in_files(directory: Path, sequences: list[Sequence]) -> None:
    """Writes users in order, to a new file whenever one has `ROWS_PER_FILE` interactions."""
    files: list[list[Sequence]] = [[]]
    size = 0
    for sequence in sequences:
        if size >= ROWS_PER_FILE:
            files.append([])
            size = 0
        files[-1].append(sequence)
        size += len(sequence.items)
    for number, part in enumerate(files):
        write_sequences(directory / f"sequences-{number:05d}.arrow", part)


def _popularity(sequences: list[Sequence], num_items: int) -> np.ndarray:
    items_N = np.concatenate([sequence.items[: sequence.train_length] for sequence in sequences])
    return np.bincount(items_N, minlength=num_items + 1)
