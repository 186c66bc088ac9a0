"""Training batches: windows of user sequences packed into full rows, so no padding is computed.

Everything follows from (seed, epoch): a resumed run finds the same batches at the same steps, and
N workers read disjoint rows of the batches that one worker would read whole.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from recsys.data.sequences import Dataset


class Batch(NamedTuple):
    """Packed rows; B counts rows here."""

    items_BL: np.ndarray
    """Item at each position, int64; 0 is padding."""
    targets_BL: np.ndarray
    """The next item of the same user, int64; 0 where there is nothing to predict."""
    positions_BL: np.ndarray
    """Position within the window, int64."""
    segments_BL: np.ndarray
    """Which window of the row, counted from 1, int64; 0 is padding."""
    rows_BL: np.ndarray
    """Number of the training position (`first_rows` of the user + position), int64; -1 if none."""
    times_BL: np.ndarray
    """Timestamp of each item, int64."""
    next_times_BL: np.ndarray
    """Timestamp of each target, int64."""


class Window(NamedTuple):
    """Positions `start` to `stop` (exclusive) of a user's training sequence, as inputs."""

    user: int
    start: int
    stop: int


def first_rows(dataset: Dataset) -> np.ndarray:
    """Returns, for every user, the number of the first training position; the total comes last.

    A training sequence of n items has n - 1 positions, each with the next item as its target.
    """
    positions_U = np.maximum(dataset.train_length_U.astype(np.int64) - 1, 0)
    return np.concatenate([[0], np.cumsum(positions_U)])


def cut_windows(num_positions: int, length: int, offset: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of windows of at most `length` that cover all positions once.

    The first window ends at `offset` (1 to `length`) where more than one is needed.
    """
    if num_positions <= length:
        return [(0, num_positions)]
    starts = [0, *range(offset, num_positions, length)]
    return list(zip(starts, [*starts[1:], num_positions], strict=True))


def epoch_windows(dataset: Dataset, length: int, generator: np.random.Generator) -> list[Window]:
    """Returns one epoch's windows in random order, cut at other places every epoch."""
    windows = [
        Window(user, start, stop)
        for user, n in enumerate(dataset.train_length_U.tolist())
        if n > 1
        for start, stop in cut_windows(n - 1, length, int(generator.integers(1, length + 1)))
    ]
    return [windows[i] for i in generator.permutation(len(windows))]


def pack(windows: list[Window], length: int, num_open: int = 64) -> list[list[Window]]:
    """Returns rows of windows that fill at most `length` positions each.

    First fit over `num_open` rows at a time: nearly no padding, and the random order is kept.
    """
    done: list[list[Window]] = []
    rows: list[list[Window]] = []
    room: list[int] = []
    for window in windows:
        size = window.stop - window.start
        place = next((i for i, left in enumerate(room) if left >= size), None)
        if place is None and len(rows) == num_open:
            fullest = room.index(min(room))
            done.append(rows.pop(fullest))
            room.pop(fullest)
        if place is None:
            rows.append([window])
            room.append(length - size)
        else:
            rows[place].append(window)
            room[place] -= size
    return done + rows


def empty_batch(num_rows: int, length: int) -> Batch:
    """Returns a batch of padding."""
    batch = Batch(*(np.zeros((num_rows, length), np.int64) for _ in Batch._fields))
    batch.rows_BL.fill(-1)
    return batch


def fill_row(
    batch: Batch, index: int, row: list[Window], dataset: Dataset, first_rows: np.ndarray
) -> None:
    """Writes the windows of `row` one after the other into row `index` of `batch`."""
    at = 0
    for segment, window in enumerate(row, start=1):
        history, times = dataset.history(window.user), dataset.timestamps(window.user)
        size = window.stop - window.start
        here = (index, slice(at, at + size))
        batch.items_BL[here] = history[window.start : window.stop]
        batch.targets_BL[here] = history[window.start + 1 : window.stop + 1]
        batch.times_BL[here] = times[window.start : window.stop]
        batch.next_times_BL[here] = times[window.start + 1 : window.stop + 1]
        batch.positions_BL[here] = np.arange(size)
        batch.segments_BL[here] = segment
        first = first_rows[window.user] + window.start
        batch.rows_BL[here] = np.arange(first, first + size)
        at += size


def pad_histories(
    histories: Sequence[np.ndarray], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns history_BL (int64, right-padded with 0) and length_B of the latest items.

    An empty history becomes one padding item, so that there is a last position to read.
    """
    latest = [history[-max_length:] for history in histories]
    length_B = np.array([max(len(history), 1) for history in latest], dtype=np.int64)
    history_BL = np.zeros((len(latest), int(length_B.max(initial=1))), dtype=np.int64)
    for row, history in zip(history_BL, latest, strict=True):
        row[: len(history)] = history
    return history_BL, length_B


def pad_times(times: Sequence[np.ndarray], max_length: int) -> np.ndarray:
    """Returns times_BM (M = L + 1) of histories that are padded to L, right-padded with 0.

    Args:
        times: of each history the timestamps of its items and, last, that of its target.
    """
    latest = [moments[-max_length - 1 :] for moments in times]
    times_BM = np.zeros((len(latest), max([2, *map(len, latest)])), dtype=np.int64)
    for row, moments in zip(times_BM, latest, strict=True):
        row[: len(moments)] = moments
    return times_BM


class Batches:
    """One epoch's batches for one of several workers."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        num_rows: int,
        length: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """Plans the epoch.

        Args:
            num_rows: rows of a batch over all workers; where they cannot be shared evenly, some
                workers get a row of padding.
            length: positions of a row (L), and the longest window.
        """
        self.dataset, self.length = dataset, length
        self.first_rows = first_rows(dataset)
        generator = np.random.default_rng([seed, epoch])
        rows = pack(epoch_windows(dataset, length, generator), length)
        rows = [rows[i] for i in generator.permutation(len(rows))]
        self.plan = [rows[i : i + num_rows] for i in range(0, len(rows), num_rows)]
        self.num_rows = -(-num_rows // world_size)
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.plan)

    def num_targets(self, step: int) -> int:
        """Returns how many positions the whole batch predicts, over all workers."""
        return sum(window.stop - window.start for row in self.plan[step] for window in row)

    def batch(self, step: int) -> Batch:
        """Returns this worker's rows of batch `step`, always of the same shape."""
        batch = empty_batch(self.num_rows, self.length)
        for index, row in enumerate(self.plan[step][self.rank :: self.world_size]):
            fill_row(batch, index, row, self.dataset, self.first_rows)
        return batch

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(step) for step in range(len(self)))
