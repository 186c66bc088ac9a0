"""Sequences go to files and come back through a memory map."""

import numpy as np
import pyarrow as pa
import pytest

from recsys.data.sequences import Dataset, Sequence, write_sequences
from recsys.data.vocabulary import write_items
from recsys.files import write_json

FIRST = [
    Sequence("a", np.array([1, 2, 3], np.int32), np.array([10, 20, 30]), 1, 1, 2),
    Sequence("b", np.array([], np.int32), np.array([], np.int64), 0, -1, -1),
]
SECOND = [Sequence("c", np.array([3], np.int32), np.array([5]), 1, -1, -1)]
MANIFEST = {"schema_version": 1, "num_users": 3, "num_items": 3}


@pytest.fixture
def directory(tmp_path):
    write_sequences(tmp_path / "sequences-00000.arrow", FIRST)
    write_sequences(tmp_path / "sequences-00001.arrow", SECOND)
    write_items(tmp_path / "items.parquet", pa.array(["x", "y", "z"]), np.array([0, 1, 0, 1]), None)
    write_json(tmp_path / "manifest.json", MANIFEST)
    return tmp_path


def test_round_trip_over_two_files(directory):
    dataset = Dataset.open(directory)
    assert (dataset.num_users, dataset.num_items_with_padding) == (3, 4)
    assert dataset.user_ids.to_pylist() == ["a", "b", "c"]
    assert dataset.item_ids.to_pylist() == [None, "x", "y", "z"]
    for user, sequence in enumerate(FIRST + SECOND):
        assert dataset.history(user).dtype == np.int32
        np.testing.assert_array_equal(dataset.history(user), sequence.items)
        np.testing.assert_array_equal(dataset.timestamps(user), sequence.timestamps)
    assert dataset.train_length_U.tolist() == [1, 0, 1]
    assert dataset.item_counts_V.tolist() == [0, 1, 0, 1]


def test_targets_are_those_of_users_that_have_one(directory):
    users_U, index_U = Dataset.open(directory).targets("test")
    assert (users_U.tolist(), index_U.tolist()) == ([0], [2])
    assert Dataset.open(directory).targets("validation")[1].tolist() == [1]


def test_histories_are_views_of_the_file(directory):
    history = Dataset.open(directory).history(0)
    assert not history.flags.owndata
    assert not history.flags.writeable


def test_a_truncated_file_is_named(directory):
    path = directory / "sequences-00000.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"is damaged .* prepare it anew"):
        Dataset.open(directory)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        Dataset.open(directory)


def test_a_lost_file_is_noticed(directory):
    (directory / "sequences-00001.arrow").unlink()
    with pytest.raises(ValueError, match="holds 2 users, not 3"):
        Dataset.open(directory)


def test_a_newer_dataset_is_refused(directory):
    write_json(directory / "manifest.json", {**MANIFEST, "schema_version": 99})
    with pytest.raises(ValueError, match="newer recsys"):
        Dataset.open(directory)


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Dataset.open(tmp_path)
