"""The teacher's answers, written once: its top items and scores at every training position.

`targets/` holds one Arrow file per range of users, a row a training position (numbered as by
`recsys.data.batches.first_rows`): the K best items, their scores in half precision, and the
log-normaliser of all scores, so that exp(score - log_normalizer) is the teacher's probability.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from recsys.config import require_at_least
from recsys.data.batches import Batch, Window, empty_batch, fill_row, first_rows, pack
from recsys.data.sequences import Dataset
from recsys.losses import LEFT_OUT
from recsys.models.interface import SequenceModel
from recsys.train.objective import seen_items, to_tensors

NUM_ROWS = 16  # packed rows a teacher reads at a time
CHUNK = 2**26  # scores over the catalogue that are in memory at a time
USERS_PER_SHARD = 2000
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """What is kept of the teacher's answers."""

    top_k: int = 64
    """Items kept at each position (K)."""
    leave_out_seen: bool = True
    """Whether answers are about what is new to the user, as what is recommended is."""

    def __post_init__(self) -> None:
        require_at_least(1, top_k=self.top_k)

    def bytes_per_position(self) -> int:
        """Returns the bytes that a training position takes on disk."""
        return self.top_k * (4 + 2) + 4


def require_room(dataset: Dataset, directory: Path, config: TargetsConfig) -> None:
    """Checks that the targets fit the disk.

    Raises:
        ValueError: they do not; with what is needed and what there is.
    """
    needed = int(first_rows(dataset)[-1]) * config.bytes_per_position()
    written = sum(path.stat().st_size for path in directory.glob("targets-*.arrow"))
    free = shutil.disk_usage(directory).free + written  # an interrupted writing keeps its files
    if needed > free:
        raise ValueError(
            f"the targets need {needed / 2**30:.1f} GiB ({config.bytes_per_position()} bytes a "
            f"position) and {directory} has {free / 2**30:.1f} GiB left: keep a smaller top-k"
        )


def shard_ranges(dataset: Dataset) -> list[tuple[int, int]]:
    """Returns the ranges of users (first, past the last) that share a file."""
    starts = range(0, dataset.num_users, USERS_PER_SHARD)
    return [(start, min(start + USERS_PER_SHARD, dataset.num_users)) for start in starts]


def write_targets(
    teacher: SequenceModel, dataset: Dataset, directory: Path, config: TargetsConfig
) -> None:
    """Writes the targets of all users; files already there are kept."""
    for users in tqdm(shard_ranges(dataset), desc="targets", disable=None, leave=False):
        write_shard(teacher, dataset, directory, users, config)


def write_shard(
    teacher: SequenceModel,
    dataset: Dataset,
    directory: Path,
    users: tuple[int, int],
    config: TargetsConfig,
) -> Path:
    """Writes the targets of a range of users, unless they are there, and returns their file."""
    path = directory / f"targets-{users[0]:09d}.arrow"
    if path.exists():
        return path
    first = first_rows(dataset)
    num_positions = int(first[users[1]] - first[users[0]])
    top_k = min(config.top_k, dataset.num_items_with_padding - 1)
    items_NK = np.zeros((num_positions, top_k), np.int32)
    scores_NK = np.zeros((num_positions, top_k), np.float16)
    log_normalizers_N = np.zeros(num_positions, np.float32)
    for batch in _teacher_batches(dataset, users, teacher.config.max_length):
        rows, items, scores, normalizers = _answer(teacher, batch, top_k, config.leave_out_seen)
        at = rows - first[users[0]]
        items_NK[at], scores_NK[at], log_normalizers_N[at] = items, scores, normalizers
    _write(path, items_NK, scores_NK, log_normalizers_N)
    return path


def _teacher_batches(dataset: Dataset, users: tuple[int, int], length: int) -> Iterator[Batch]:
    """Yields packed windows in which every training position of `users` is asked for once.

    Windows of a long sequence overlap by half, and the second half is what is asked for, so that
    every answer rests on at least half a window of history where there is that much.
    """
    first = first_rows(dataset)
    windows = [
        Window(user, start, min(start + length, n - 1))
        for user in range(*users)
        for n in [int(dataset.train_length_U[user])]
        if n > 1
        for start in _starts(n - 1, length)
    ]
    rows = pack(windows, length)
    for at in range(0, len(rows), NUM_ROWS):
        batch = empty_batch(len(rows[at : at + NUM_ROWS]), length)
        for index, row in enumerate(rows[at : at + NUM_ROWS]):
            fill_row(batch, index, row, dataset, first)
            _silence_overlap(batch, index, row, length)
        yield batch


def _starts(num_positions: int, length: int) -> list[int]:
    if num_positions <= length:
        return [0]
    stride = max(length // 2, 1)
    return [*range(0, num_positions - length + stride, stride)]


def _silence_overlap(batch: Batch, index: int, row: list[Window], length: int) -> None:
    """Marks the positions that the window before has answered as not asked for."""
    at = 0
    for window in row:
        if window.start > 0:
            batch.rows_BL[index, at : at + length - max(length // 2, 1)] = -1
        at += window.stop - window.start


@torch.inference_mode()
def _answer(
    teacher: SequenceModel, batch: Batch, top_k: int, leave_out_seen: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns row numbers, items, scores and log-normalisers of the asked positions."""
    inputs, asked_BL = to_tensors(batch, CPU).inputs, torch.from_numpy(batch.rows_BL >= 0)
    states_ND, seen_NL = teacher.encode(inputs)[asked_BL], seen_items(inputs)[asked_BL]
    table_VD = teacher.item_table()
    size = max(CHUNK // len(table_VD), 1)
    parts = []
    for states, seen in zip(states_ND.split(size), seen_NL.split(size), strict=True):
        scores_NV = states @ table_VD.T
        if leave_out_seen:
            scores_NV.scatter_(1, seen, LEFT_OUT)
        scores_NV[:, 0] = -torch.inf
        top = scores_NV.topk(top_k, dim=-1)
        parts.append((top.indices, top.values, scores_NV.logsumexp(dim=-1)))
    items, scores, normalizers = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return batch.rows_BL[batch.rows_BL >= 0], items, scores, normalizers


def _write(path: Path, items_NK: np.ndarray, scores_NK: np.ndarray, normalizers_N: np.ndarray):
    top_k = items_NK.shape[1]
    columns = {
        "items": pa.FixedSizeListArray.from_arrays(pa.array(items_NK.reshape(-1)), top_k),
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores_NK.reshape(-1)), top_k),
        "log_normalizer": pa.array(normalizers_N),
    }
    table = pa.table(columns)
    beside = path.with_suffix(".tmp")
    with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(table), 1))
    beside.replace(path)


class Targets:
    """Read access to `targets/` through a memory map."""

    def __init__(self, directory: Path):
        """Opens all files.

        Raises:
            ValueError: `directory` holds no targets.
        """
        paths = sorted(directory.glob("targets-*.arrow"))
        if not paths:
            raise ValueError(f"{directory} holds no targets; run jobs.distill")
        self.shards = [_read(path) for path in paths]
        self.starts = np.cumsum([0, *(len(items_NK) for items_NK, _ in self.shards)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def look_up(self, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns items_NK (int64) and scores_NK (float32) of training positions."""
        top_k = self.shards[0][0].shape[1]
        items_NK = np.empty((len(rows_N), top_k), np.int64)
        scores_NK = np.empty((len(rows_N), top_k), np.float32)
        shard_N = np.searchsorted(self.starts, rows_N, side="right") - 1
        for shard in np.unique(shard_N):
            mine = shard_N == shard
            local = rows_N[mine] - self.starts[shard]
            items, scores = self.shards[shard]
            items_NK[mine], scores_NK[mine] = items[local], scores[local]
        return items_NK, scores_NK


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    items, scores = (table[name].combine_chunks() for name in ("items", "scores"))
    if isinstance(items, pa.ChunkedArray):
        items, scores = items.chunk(0), scores.chunk(0)
    top_k = items.type.list_size
    return (
        items.values.to_numpy(zero_copy_only=True).reshape(-1, top_k),
        scores.values.to_numpy(zero_copy_only=True).reshape(-1, top_k),
    )
