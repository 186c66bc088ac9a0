"""Teacher inference by Ray Data: a pool of model workers, each writing the files of its users."""

import collections
from pathlib import Path
from typing import Any

import ray.data
import torch
from tqdm import tqdm

from recsys.data.on_ray import quieten
from recsys.data.sequences import Dataset
from recsys.distill.targets import (
    TargetsConfig,
    shard_ranges,
    write_item_vectors,
    write_shard,
)
from recsys.models import load_model
from recsys.train.config import find_device


class _Writer:
    """Holds the teacher; turns ranges of users into files."""

    def __init__(
        self, teacher: Path, dataset: Path, directory: Path, config: TargetsConfig, device: str
    ):
        torch.set_num_threads(1)
        self.teacher = load_model(teacher).to(find_device(device))
        self.dataset = Dataset.open(dataset)
        self.directory, self.config = directory, config

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        ranges = zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True)
        paths = [
            write_shard(self.teacher, self.dataset, self.directory, users, self.config)
            for users in ranges
        ]
        return {"path": [path.name for path in paths]}


def write_targets_on_ray(
    teacher: Path,
    dataset: Path,
    directory: Path,
    config: TargetsConfig,
    num_workers: int,
    device: str = "cpu",
) -> None:
    """Writes what `write_targets` writes, with `num_workers` processes, each on a GPU of its own
    where `device` is "cuda"."""
    quieten()
    ray.data.DataContext.get_current().enable_progress_bars = False  # there is one of ours
    if config.vectors:
        write_item_vectors(load_model(teacher), directory)
    ranges = [{"start": start, "stop": stop} for start, stop in shard_ranges(Dataset.open(dataset))]
    paths = [path.resolve() for path in (teacher, dataset, directory)]
    done = ray.data.from_items(ranges, override_num_blocks=len(ranges)).map_batches(
        _Writer,
        batch_size=1,
        fn_constructor_args=(*paths, config, device),
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(ranges))),
        num_cpus=1,
        num_gpus=1 if device == "cuda" else 0,
    )
    bar = tqdm(done.iter_rows(), "targets", len(ranges), disable=None, leave=False)
    collections.deque(bar, maxlen=0)
