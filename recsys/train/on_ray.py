"""The same training on N data-parallel workers, by Ray Train.

A worker that dies is replaced and the group goes on from the last checkpoint; after the driver
dies, the same call finds that checkpoint, too.
"""

import contextlib
import sys
import tempfile
import threading
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path

import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from recsys.data.sequences import Dataset
from recsys.train.fit import Fitted, Task, fit, start_model
from recsys.train.loop import State, Workers, epoch_batches, has_bfloat16

STATE = "checkpoint.pt"
MAX_FAILURES = 3
SECONDS_BETWEEN_LOOKS = 0.2


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
        ValueError: what a user can cause.
        ray.train.TrainingFailedError: workers failed more than `MAX_FAILURES` times.
    """
    task = _for_workers(task, num_workers)
    progress = directory.resolve() / "progress"
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"task": task, "progress": progress},
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(directory.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = _fit(trainer, progress)
    except WorkerGroupError as error:
        for caused in error.worker_failures.values():
            if isinstance(caused, ValueError):
                raise ValueError(str(caused)) from None
        raise
    assert result.checkpoint is not None, "a finished run has reported a checkpoint"
    state = _read(result.checkpoint)
    model = start_model(task, Dataset.open(task.dataset))
    model.load_state_dict(state["best"])
    model.eval()
    return Fitted(model, state["history"])


def _for_workers(task: Task, num_workers: int) -> Task:
    """Returns the task with paths that hold anywhere, and one precision for all workers.

    Raises:
        ValueError: what every worker would find: nothing to train on, rows that cannot be shared.
    """
    config = task.train
    bfloat16 = has_bfloat16() if config.bfloat16 is None else config.bfloat16
    length = config.row_length or task.model.max_length
    workers = Workers(world_size=num_workers)
    epoch_batches(Dataset.open(task.dataset), config, length, 0, workers)
    return replace(
        task,
        dataset=task.dataset.resolve(),
        initial=task.initial and task.initial.resolve(),
        train=replace(config, bfloat16=bfloat16),
    )


def _fit(trainer: TorchTrainer, progress: Path) -> Result:
    """Returns the trainer's result; meanwhile shows the bar that the first worker draws in a file.

    In a thread: from the main one Ray takes over Ctrl-C, for good, and ends the process itself.
    """
    outcome: Future[Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    progress.parent.mkdir(parents=True, exist_ok=True)
    progress.write_text("")
    threading.Thread(target=fit, daemon=True).start()
    with progress.open() as bar:
        while wait([outcome], timeout=SECONDS_BETWEEN_LOOKS).not_done:
            if sys.stderr.isatty():
                sys.stderr.write(bar.read())
                sys.stderr.flush()
    return outcome.result()


def _train_worker(config: dict) -> None:
    context = ray.train.get_context()
    workers = Workers(rank=context.get_world_rank(), world_size=context.get_world_size())
    with contextlib.ExitStack() as stack:
        first = workers.rank == 0
        bar = stack.enter_context(config["progress"].open("a")) if first else None
        fit(config["task"], RayCheckpoints(), workers=workers, bar=bar)


def _read(checkpoint: Checkpoint) -> State:
    with checkpoint.as_directory() as directory:
        return torch.load(Path(directory) / STATE, weights_only=True)
