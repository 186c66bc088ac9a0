"""Teacher inference by Ray Data: a pool of model workers, each writing the files of its users."""

from pathlib import Path
from typing import Any

import ray.data
import torch

from recsys.data.sequences import Dataset
from recsys.distill.targets import TargetsConfig, shard_ranges, write_shard
from recsys.models import load_model


class _Writer:
    """Holds the teacher; turns a range of users into a file."""

    def __init__(self, teacher: Path, dataset: Path, directory: Path, config: TargetsConfig):
        torch.set_num_threads(1)
        self.teacher, self.dataset = load_model(teacher), Dataset.open(dataset)
        self.directory, self.config = directory, config

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        users = (int(row["start"]), int(row["stop"]))
        path = write_shard(self.teacher, self.dataset, self.directory, users, self.config)
        return {"path": path.name}


def write_targets_on_ray(
    teacher: Path, dataset: Path, directory: Path, config: TargetsConfig, num_workers: int
) -> None:
    """Writes what `write_targets` writes, with `num_workers` processes."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    ranges = [{"start": start, "stop": stop} for start, stop in shard_ranges(Dataset.open(dataset))]
    paths = [path.resolve() for path in (teacher, dataset, directory)]
    done = ray.data.from_items(ranges, override_num_blocks=len(ranges)).map(
        _Writer,
        fn_constructor_args=(*paths, config),
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(ranges))),
        num_cpus=1,
    )
    done.materialize()
