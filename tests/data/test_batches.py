import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.batches import Batches, Window, cut_windows, first_rows, pack


@given(st.integers(1, 100), st.integers(1, 20), st.data())
def test_windows_cover_every_position_once(num_positions, length, data):
    offset = data.draw(st.integers(1, length))
    windows = cut_windows(num_positions, length, offset)
    covered = [position for start, stop in windows for position in range(start, stop)]
    assert covered == list(range(num_positions))
    assert all(stop - start <= length for start, stop in windows)


@given(st.lists(st.integers(1, 10), max_size=60))
def test_packing_keeps_every_window_and_no_row_overflows(sizes):
    windows = [Window(user, 0, size) for user, size in enumerate(sizes)]
    rows = pack(windows, 10, num_open=4)
    assert sorted(window for row in rows for window in row) == windows
    assert all(sum(w.stop - w.start for w in row) <= 10 for row in rows)


def test_packing_leaves_little_padding():
    generator = np.random.default_rng(0)
    windows = [
        Window(user, 0, int(size)) for user, size in enumerate(generator.integers(1, 30, 2000))
    ]
    rows = pack(windows, 50)
    assert sum(w.stop for row in rows for w in row) / (50 * len(rows)) > 0.97


def test_an_epoch_predicts_every_training_position_once(dataset):
    batches = Batches(dataset, num_rows=4, length=8, seed=1, epoch=0)
    rows = np.concatenate([batch.rows_BL[batch.rows_BL >= 0] for batch in batches])
    assert sorted(rows) == list(range(first_rows(dataset)[-1]))


def test_targets_are_the_next_items_and_never_those_of_validation_or_test(dataset):
    for batch in Batches(dataset, num_rows=4, length=8, seed=1, epoch=0):
        for row, item, target in zip(
            batch.rows_BL.flat, batch.items_BL.flat, batch.targets_BL.flat, strict=True
        ):
            if row < 0:
                assert item == target == 0
                continue
            user = int(np.searchsorted(first_rows(dataset), row, side="right")) - 1
            position = row - first_rows(dataset)[user]
            assert dataset.history(user)[position] == item
            assert dataset.history(user)[position + 1] == target
            assert position + 1 < dataset.train_length_U[user]


def test_epochs_differ_and_repeat_for_the_same_seed(dataset):
    def items(seed, epoch):
        return Batches(dataset, num_rows=4, length=8, seed=seed, epoch=epoch).batch(0).items_BL

    np.testing.assert_array_equal(items(1, 0), items(1, 0))
    assert (items(1, 0) != items(1, 1)).any()


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_workers_share_the_rows_of_one_worker(dataset, world_size):
    def batch(rank, world_size):
        return Batches(
            dataset, num_rows=4, length=8, seed=1, epoch=0, rank=rank, world_size=world_size
        ).batch(0)

    whole = batch(0, 1).rows_BL
    for rank in range(world_size):
        shared, expected = batch(rank, world_size).rows_BL, whole[rank::world_size]
        assert len(shared) == -(-4 // world_size)
        np.testing.assert_array_equal(shared[: len(expected)], expected)
        assert (shared[len(expected) :] == -1).all()
