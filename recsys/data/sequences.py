"""A prepared dataset: item sequences of users in Arrow files, read through a memory map."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.schema import SCHEMA_VERSION
from recsys.data.split import NONE
from recsys.files import read_json

MANIFEST, ITEMS, POPULARITY = "manifest.json", "items.parquet", "popularity"
SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "items": pa.large_list(pa.int32()),
        "timestamps": pa.large_list(pa.int64()),
        "train_length": pa.int32(),
        "validation_index": pa.int32(),
        "test_index": pa.int32(),
    }
)


class _Shard(NamedTuple):
    """The columns of one file as arrays over its memory map."""

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray


class Dataset:
    """Read access to `dataset/`. Users are numbered in the order of the files."""

    def __init__(self, path: Path, manifest: dict[str, Any], tables: list[pa.Table]):
        self.path, self.manifest = path, manifest
        self._tables = tables
        self._shards = [_shard(table) for table in tables]
        self._starts = np.cumsum([0, *(len(table) for table in tables)])
        self.num_users = int(self._starts[-1])
        self.num_items_with_padding = int(manifest["num_items"]) + 1
        self.train_length_U = self._column("train_length")
        self.validation_index_U = self._column("validation_index")
        self.test_index_U = self._column("test_index")

    @classmethod
    def open(cls, path: Path) -> "Dataset":
        """Returns the dataset in `path`.

        Raises:
            ValueError: it is not a dataset, is of a newer schema, or a file is damaged.
        """
        manifest = read_json(path / MANIFEST)
        if not (isinstance(manifest, dict) and isinstance(manifest.get("schema_version"), int)):
            raise ValueError(f"{path / MANIFEST} is not of a dataset of recsys: prepare one")
        if manifest["schema_version"] > SCHEMA_VERSION:
            raise ValueError(f"{path} was written by a newer recsys: install that, or prepare anew")
        try:
            files = sorted(path.glob("sequences-*.arrow"))
            tables = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); prepare it anew") from None
        num_users = sum(len(table) for table in tables)
        if num_users != manifest["num_users"]:
            raise ValueError(
                f"{path} is damaged (it holds {num_users} users, not {manifest['num_users']}); "
                "prepare it anew"
            )
        return cls(path, manifest, tables)

    def history(self, user: int) -> np.ndarray:
        """Returns all items of a user in order, int32, without copying."""
        shard, row = self._find(user)
        return shard.items[shard.offsets[row] : shard.offsets[row + 1]]

    def timestamps(self, user: int) -> np.ndarray:
        """Returns the times of a user's items, int64, without copying."""
        shard, row = self._find(user)
        return shard.timestamps[shard.offsets[row] : shard.offsets[row + 1]]

    def targets(self, split: Literal["validation", "test"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the users that have a target in `split` and its position in their sequence."""
        index_U = self.validation_index_U if split == "validation" else self.test_index_U
        users_U = np.flatnonzero(index_U != NONE)
        return users_U, index_U[users_U].astype(np.int64)

    @property
    def user_ids(self) -> pa.ChunkedArray:
        """External ids of the users."""
        return pa.chunked_array([c for t in self._tables for c in t["user_id"].chunks], pa.string())

    @cached_property
    def item_ids(self) -> pa.ChunkedArray:
        """External ids of the items; null for the padding item 0."""
        return pq.read_table(self.path / ITEMS, columns=["item_id"])["item_id"]

    @cached_property
    def item_counts_V(self) -> np.ndarray:
        """How often each item occurs in training."""
        counts = pq.read_table(self.path / ITEMS, columns=[POPULARITY])[POPULARITY]
        return counts.to_numpy()

    def _find(self, user: int) -> tuple[_Shard, int]:
        if len(self._shards) == 1:
            return self._shards[0], int(user)
        index = int(np.searchsorted(self._starts, user, side="right")) - 1
        return self._shards[index], int(user - self._starts[index])

    def _column(self, name: str) -> np.ndarray:
        parts = [table[name].to_numpy() for table in self._tables]
        return np.concatenate([np.empty(0, np.int32), *parts]).astype(np.int32)


def _shard(table: pa.Table) -> _Shard:
    items, timestamps = (_only_chunk(table[name]) for name in ("items", "timestamps"))
    return _Shard(items.offsets.to_numpy(), items.values.to_numpy(), timestamps.values.to_numpy())


def _only_chunk(column: pa.ChunkedArray) -> pa.LargeListArray:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


class Sequence(NamedTuple):
    """One user's row of a sequences file."""

    user_id: str
    items: np.ndarray
    timestamps: np.ndarray
    train_length: int
    validation_index: int
    test_index: int


def write_sequences(path: Path, sequences: Iterable[Sequence]) -> None:
    """Writes one sequences file, whole."""
    columns = list(zip(*sequences, strict=True)) or [()] * len(SCHEMA)
    user_ids, items, timestamps, *splits = columns
    lengths = [len(sequence) for sequence in items]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int64())
    arrays = [
        pa.array(user_ids, pa.string()),
        pa.LargeListArray.from_arrays(offsets, _flat(items, np.int32)),
        pa.LargeListArray.from_arrays(offsets, _flat(timestamps, np.int64)),
        *(pa.array(values, pa.int32()) for values in splits),
    ]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table, max_chunksize=max(len(table), 1))


def _flat(parts: tuple[np.ndarray, ...], dtype: type) -> pa.Array:
    return pa.array(np.concatenate([np.empty(0, dtype), *parts]).astype(dtype))
