"""Datasets written by hand, small enough to rank on paper."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.schema import SCHEMA_VERSION
from recsys.data.sequences import POPULARITY, Dataset, write_sequences
from recsys.data.sequences import Sequence as Row
from recsys.files import write_json

NUM_ITEMS = 5


def write_dataset(
    path: Path, sequences: Sequence[Sequence[int]], num_items: int = NUM_ITEMS
) -> Path:
    """Writes users whose last item is for test, the one before for validation."""
    path.mkdir()
    rows = [
        Row(
            user_id=f"u{user}",
            items=np.array(items, np.int32),
            timestamps=np.arange(len(items)),
            train_length=len(items) - 2 if len(items) > 2 else len(items),
            validation_index=len(items) - 2 if len(items) > 2 else -1,
            test_index=len(items) - 1 if len(items) > 2 else -1,
        )
        for user, items in enumerate(sequences)
    ]
    write_sequences(path / "sequences-00000.arrow", rows)
    item_ids = pa.array([None, *(f"i{item}" for item in range(1, num_items + 1))], pa.string())
    trained = [item for row in rows for item in row.items[: row.train_length].tolist()]
    counts_V = np.bincount(trained, minlength=num_items + 1).astype(np.int64)
    table = pa.table({"item_id": item_ids, POPULARITY: counts_V})
    pq.write_table(table, path / "items.parquet")
    manifest = {"schema_version": SCHEMA_VERSION, "num_items": num_items, "num_users": len(rows)}
    write_json(path / "manifest.json", manifest)
    return path


@pytest.fixture
def make_dataset(tmp_path) -> Callable[..., Dataset]:
    """A function from sequences to an opened dataset."""

    def make(
        sequences: Sequence[Sequence[int]], num_items: int = NUM_ITEMS, name: str = "dataset"
    ) -> Dataset:
        return Dataset.open(write_dataset(tmp_path / name, sequences, num_items))

    return make


@pytest.fixture
def walks(make_dataset) -> Dataset:
    """Forty users over thirty items, nobody meeting an item twice."""
    generator = np.random.default_rng(0)
    sequences = [generator.permutation(30)[: generator.integers(3, 20)] + 1 for _ in range(40)]
    return make_dataset(sequences, num_items=30)
