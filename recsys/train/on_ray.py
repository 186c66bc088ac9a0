"""The same training on N data-parallel workers, by Ray Train.

A worker that dies is replaced and the group goes on from the last checkpoint; after the driver
dies, the same call finds that checkpoint, too.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from recsys.data.sequences import Dataset
from recsys.train.fit import Fitted, Task, fit, start_model
from recsys.train.loop import State, Workers

STATE = "checkpoint.pt"
MAX_FAILURES = 3


class RayCheckpoints:
    """Keeps the state where Ray Train keeps checkpoints."""

    def load(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        return _read(checkpoint) if checkpoint else None

    def save(self, state: State, metrics: dict[str, float]) -> None:
        if ray.train.get_context().get_world_rank() > 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as directory:
            torch.save(state, Path(directory) / STATE)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))


def fit_on_ray(task: Task, directory: Path, num_workers: int) -> Fitted:
    """Returns what `fit` returns, trained by `num_workers` processes.

    Args:
        directory: where Ray Train keeps the run's checkpoints; on a cluster all nodes reach it.

    Raises:
        ray.train.TrainingFailedError: workers failed more than `MAX_FAILURES` times.
    """
    # Workers start in a directory of their own.
    absolute = replace(task, dataset=task.dataset.resolve())
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"task": absolute},
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(directory.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    assert result.checkpoint is not None, "a finished run has reported a checkpoint"
    state = _read(result.checkpoint)
    model = start_model(task, Dataset.open(task.dataset))
    model.load_state_dict(state["best"])
    model.eval()
    return Fitted(model, state["history"])


def _train_worker(config: dict) -> None:
    context = ray.train.get_context()
    workers = Workers(rank=context.get_world_rank(), world_size=context.get_world_size())
    fit(config["task"], RayCheckpoints(), workers=workers)


def _read(checkpoint: Checkpoint) -> State:
    with checkpoint.as_directory() as directory:
        return torch.load(Path(directory) / STATE, weights_only=True)
