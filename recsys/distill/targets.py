"""The teacher's answers on disk, written once: its top items and scores at every training position.

`targets/` holds one Arrow file per range of users, a row a training position
(numbered as by `recsys.data.batches.first_rows`): the K best items, their scores in half precision,
the target's score, and the log-normaliser of all scores, so that exp(score - log_normalizer) is the
teacher's probability; if asked for, a sample of all items and the teacher's states.
"""

import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from recsys.config import from_json
from recsys.data.batches import Batch, Window, empty_batch, fill_row, first_rows, pack
from recsys.data.sequences import Dataset
from recsys.distill.answers import Answers, Scores, TargetsConfig, ask
from recsys.files import STAGE_FILE, fingerprint, read_json
from recsys.models.interface import SequenceModel
from recsys.train.objective import TensorBatch, to_tensors

NUM_ROWS = 16  # packed rows a teacher reads at a time
USERS_PER_SHARD = 2000
ITEM_VECTORS = "item-vectors.npy"
STORED = {
    "items_NK": np.int32,
    "scores_NK": np.float16,
    "target_scores_N": np.float16,
    "sampled_NM": np.int32,
    "sampled_scores_NM": np.float16,
    "states_NE": np.float16,
    "log_normalizers_N": np.float32,
}
"""The columns of a file, and their types."""


def require_room(dataset: Dataset, directory: Path, config: TargetsConfig, width: int) -> None:
    """Checks that the targets fit the disk.

    Args:
        width: of the teacher's states.

    Raises:
        ValueError: they do not; with what is needed and what there is.
    """
    most = dataset.num_items_with_padding - 1
    size = replace(config, top_k=min(config.top_k, most)).bytes_per_position(width)
    needed = int(first_rows(dataset)[-1]) * size
    written = sum(path.stat().st_size for path in directory.glob("targets-*.arrow"))
    free = shutil.disk_usage(directory).free + written  # an interrupted writing keeps its files
    if needed > free:
        raise ValueError(
            f"the targets need {needed / 2**30:.1f} GiB ({size} bytes a position) and {directory} "
            f"has {free / 2**30:.1f} GiB left: keep a smaller top-k, or fewer sampled or no vectors"
        )


def shard_ranges(dataset: Dataset) -> list[tuple[int, int]]:
    """Returns the ranges of users (first, past the last) that share a file."""
    starts = range(0, dataset.num_users, USERS_PER_SHARD)
    return [(start, min(start + USERS_PER_SHARD, dataset.num_users)) for start in starts]


def write_targets(
    teacher: SequenceModel, dataset: Dataset, directory: Path, config: TargetsConfig
) -> None:
    """Writes the targets of all users, asking the teacher where it is; files already there are
    kept."""
    if config.vectors:
        write_item_vectors(teacher, directory)
    for users in tqdm(shard_ranges(dataset), desc="targets", disable=None, leave=False):
        write_shard(teacher, dataset, directory, users, config)


def write_item_vectors(teacher: SequenceModel, directory: Path) -> None:
    """Writes the teacher's item table in half precision."""
    with torch.inference_mode():
        np.save(directory / ITEM_VECTORS, teacher.item_table().half().cpu().numpy())


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
    # Of the range's own, so that it is the same whoever writes it, and when.
    generator = torch.Generator().manual_seed(users[0])
    columns = _zeros(int(first[users[1]] - first[users[0]]), teacher, dataset, config)
    device = next(teacher.parameters()).device
    for batch in _teacher_batches(dataset, users, teacher.config.max_length):
        rows_N = batch.rows_BL[batch.rows_BL >= 0] - first[users[0]]
        scores = ask(teacher, to_tensors(batch, device), config, generator)
        for name, values in columns.items():
            values[rows_N] = getattr(scores, name).cpu().numpy()
    _write(path, columns)
    return path


def _zeros(
    size: int, teacher: SequenceModel, dataset: Dataset, config: TargetsConfig
) -> dict[str, np.ndarray]:
    """Returns the columns of a file of `size` positions, but for those that are not kept."""
    top_k = min(config.top_k, dataset.num_items_with_padding - 1)
    sizes = {"K": top_k, "M": config.num_sampled, "E": teacher.config.width * config.vectors}
    shapes = {name: [sizes[d] for d in name.rpartition("_")[2][1:]] for name in STORED}
    return {
        name: np.zeros((size, *shape), STORED[name])
        for name, shape in shapes.items()
        if 0 not in shape
    }


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


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    table = pa.table({name: _column(values) for name, values in columns.items()})
    beside = path.with_suffix(".tmp")
    with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(table), 1))
    beside.replace(path)


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def kept(directory: Path) -> TargetsConfig:
    """Returns what the stage that wrote `directory` was told to keep.

    Raises:
        ValueError: `directory` holds no targets.
    """
    stage = read_json(directory / STAGE_FILE) if (directory / STAGE_FILE).exists() else {}
    if stage.get("stage") != "targets":
        raise ValueError(f"{directory} holds no targets; run jobs.distill")
    return from_json(TargetsConfig, stage["config"])


def require_dataset(directory: Path, dataset: Path) -> None:
    """Checks that targets are of a dataset: they are found by the number of a training position.

    Raises:
        ValueError: they are of another one.
    """
    made_from = read_json(directory / STAGE_FILE)["inputs"]["dataset"]
    if made_from != fingerprint(dataset):
        raise ValueError(
            f"{directory} holds what a teacher said of another dataset than {dataset}: run "
            "jobs.distill again"
        )


class Targets:
    """A `Teacher` that has spoken: read access to `targets/` through a memory map."""

    def __init__(self, directory: Path, *, unread: Collection[str] = ()):
        """Opens all files.

        Args:
            unread: columns that are not looked up.

        Raises:
            ValueError: `directory` holds no targets.
        """
        paths = sorted(directory.glob("targets-*.arrow"))
        if not paths:
            raise ValueError(f"{directory} holds no targets; run jobs.distill")
        self.directory = directory
        self.shards = [_read(path) for path in paths]
        self.starts = np.cumsum([0, *(len(shard["items_NK"]) for shard in self.shards)])
        self.columns = set(self.shards[0]).difference(unread)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def look_up(self, rows_N: np.ndarray) -> Scores:
        """Returns what is stored of training positions, by their numbers, in the types in which it
        is stored."""
        shard_N = np.searchsorted(self.starts, rows_N, side="right") - 1
        local_N = rows_N - self.starts[shard_N]
        parts = [(self.shards[shard], shard_N == shard) for shard in np.unique(shard_N)]
        found = {}
        for name, stored in STORED.items():
            read = name in self.columns
            shape = self.shards[0][name].shape[1:] if read else (0,)
            values = np.empty((len(rows_N), *shape), stored)
            for columns, mine in parts if read else ():
                values[mine] = columns[name][local_N[mine]]
            found[name] = torch.from_numpy(values)
        return Scores(**found)

    def answers(self, batch: TensorBatch) -> Answers:
        """Returns the answers at the batch's training positions, in order."""
        rows_N = batch.rows_BL[batch.rows_BL >= 0]
        found = self.look_up(rows_N.cpu().numpy())
        return Scores(*(values.to(rows_N.device) for values in found)).answers()

    def item_vectors(self) -> Tensor:
        """Returns the teacher's table_VE, in half precision."""
        path = self.directory / ITEM_VECTORS
        if not path.exists():
            raise ValueError(f"{self.directory} holds no vectors: write it with --keep.vectors")
        return torch.from_numpy(np.load(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return {name: _values(table[name].combine_chunks()) for name in table.column_names}


def _values(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=True)
    return column.values.to_numpy(zero_copy_only=True).reshape(-1, column.type.list_size)
