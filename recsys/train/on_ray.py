"""The same training on N data-parallel workers, by Ray Train.

A worker that dies is replaced and the group goes on from the last checkpoint, with fewer or more
workers where the number is a range; after the driver dies, the same call finds that checkpoint,
too. Checkpoints are written while training goes on.
"""

import contextlib
import sys
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
from ray.train import CheckpointUploadMode as UploadMode
from ray.train.torch import TorchTrainer
from torch import Tensor
from torch.utils._pytree import tree_map

from recsys.data.sequences import Dataset
from recsys.train.config import has_bfloat16
from recsys.train.fit import (
    Fitted,
    NumWorkers,
    Task,
    finish_model,
    fit,
    require_targets,
    start_model,
)
from recsys.train.loop import State, Workers, epoch_batches

NAME, STATE = "checkpoints", "checkpoint.pt"
MAX_FAILURES = 3
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_RESIZES = 60  # of a group that has become smaller than it may be


class RayCheckpoints:
    """Keeps the state where Ray Train keeps checkpoints, written by a thread from a copy."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.one_write = threading.Semaphore()  # copies of the state would pile up otherwise

    def load(self) -> State | None:
        checkpoint = ray.train.get_checkpoint()
        return _read(checkpoint) if checkpoint else None

    def save(self, state: State, metrics: dict[str, float]) -> None:
        if ray.train.get_context().get_world_rank() > 0:
            ray.train.report(metrics, checkpoint_upload_mode=UploadMode.ASYNC)
            return
        self.one_write.acquire()
        copied = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, state)

        def write(checkpoint: Checkpoint, name: str) -> Checkpoint:
            """Writes a directory that counts once it is reported: half of one is not found."""
            try:
                directory = self.directory / name
                directory.mkdir(parents=True, exist_ok=True)
                torch.save(copied, directory / STATE)
                return Checkpoint.from_directory(directory)
            finally:
                self.one_write.release()

        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(self.directory),  # to be written by `write`
            checkpoint_upload_mode=UploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )


def fit_on_ray(task: Task, directory: Path, num_workers: NumWorkers) -> Fitted:
    """Returns what `fit` returns, trained by `num_workers` processes.

    Args:
        num_workers: a number, or the fewest and the most: the group then has as many as there is
            room for, and goes on when workers or nodes come and go.
        directory: where Ray Train keeps the run's checkpoints; on a cluster all nodes reach it.

    Raises:
        ValueError: what a user can cause.
        ray.train.TrainingFailedError: workers failed more than `MAX_FAILURES` times.
    """
    if not isinstance(num_workers, int) and num_workers[0] < 1:
        raise ValueError(f"the fewest workers must be at least 1, not {num_workers[0]}")
    task = _for_workers(task)
    progress = directory.resolve() / "progress"
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"task": task, "directory": progress.parent / NAME, "progress": progress},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
            use_gpu=task.train.device == "cuda",
            resources_per_worker={"CPU": 1},
        ),
        run_config=RunConfig(
            name=NAME,
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
    finish_model(model)
    return Fitted(model, state["history"], state["peak_memory_mib"])


def _for_workers(task: Task) -> Task:
    """Returns the task with paths that hold anywhere, and one precision for all workers.

    Raises:
        ValueError: what every worker would find: nothing to train on, or to measure a model by.
    """
    config = task.train
    if config.bfloat16 is None and config.device == "cpu":
        config = replace(config, bfloat16=has_bfloat16())
    length = config.row_length or task.model.max_length
    dataset = Dataset.open(task.dataset)
    require_targets(dataset)
    epoch_batches(dataset, config, length, 0, Workers())
    return replace(
        task,
        dataset=task.dataset.resolve(),
        initial=task.initial and task.initial.resolve(),
        train=config,
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
        fit(config["task"], RayCheckpoints(config["directory"]), workers=workers, bar=bar)


def _read(checkpoint: Checkpoint) -> State:
    with checkpoint.as_directory() as directory:
        return torch.load(Path(directory) / STATE, map_location="cpu", weights_only=True)
