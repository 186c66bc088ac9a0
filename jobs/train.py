"""Train the teacher: `python -m jobs.train [preset] [flags]`."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from jobs.command import command
from jobs.on_ray import require_gpus, start_ray
from jobs.presets import Preset
from recsys.checkpoint import Origin
from recsys.compress.package import package
from recsys.data.sequences import Dataset
from recsys.files import fingerprint, run_stage
from recsys.models import ModelConfig, without_encoder
from recsys.train.config import TrainConfig
from recsys.train.fit import Fitted, NumWorkers, Task, fit, save_encoder
from recsys.train.objective import LossConfig, objective

TEXT_ENCODER = "text-encoder"
SCRATCH = ("checkpoint.pt", "checkpoints", "progress")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains the teacher on a prepared dataset."""

    dataset: Path
    """The dataset, from jobs.prepare."""
    output: Path
    """Where the teacher's model directory goes."""
    model: ModelConfig
    """The teacher's shape."""
    train: TrainConfig
    """How it is trained."""
    num_workers: NumWorkers
    """Data-parallel workers under Ray Train, or the fewest and the most: as many as there is room
    for at a time; 0 for this process, without Ray."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What it minimises."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Train":
        """Returns the preset's training in a run directory."""
        return cls(
            dataset=directory / "dataset",
            output=directory / "teacher",
            model=preset.teacher,
            train=preset.train,
            loss=preset.loss,
            num_workers=preset.num_workers,
        )


def run(job: Train) -> Path:
    """Trains the teacher, unless it is there, and returns its model directory."""
    task = Task(
        dataset=job.dataset,
        model=job.model,
        train=job.train,
        objective=objective(job.loss, job.dataset),
    )

    def build(directory: Path) -> None:
        train_model(
            task,
            directory,
            origin=Origin(
                role="teacher",
                parents={"dataset": fingerprint(job.dataset)},
                scores_seen=not job.loss.leave_out_seen,
            ),
            num_workers=job.num_workers,
        )

    run_stage(
        job.output,
        name="train",
        config=(job.model, job.train, job.loss, job.num_workers),
        inputs={"dataset": job.dataset},
        build=build,
        scratch=SCRATCH,
    )
    return job.output


def train_model(task: Task, directory: Path, *, origin: Origin, num_workers: NumWorkers) -> None:
    """Trains what `task` says, in `directory`, and leaves a complete model directory there."""
    started = time.perf_counter()
    fitted = train_on(task, directory, num_workers)
    dataset = Dataset.open(task.dataset)
    if save_encoder(fitted.model, dataset, directory / TEXT_ENCODER):
        print(f"the text encoder that has learned: {directory / TEXT_ENCODER}", flush=True)
    package(
        without_encoder(fitted.model),
        directory,
        dataset,
        origin=origin,
        seed=task.train.seed,
        extra={
            "train_seconds": round(time.perf_counter() - started, 1),
            "peak_memory_mib": fitted.peak_memory_mib,
            "history": fitted.history,
        },
    )


def train_on(task: Task, directory: Path, num_workers: NumWorkers) -> Fitted:
    """Returns the trained model; checkpoints go to `directory`."""
    if num_workers == 0:
        return fit(task, directory)
    start_ray()
    if task.train.device == "cuda":
        require_gpus(num_workers if isinstance(num_workers, int) else num_workers[0])
    from recsys.train.on_ray import fit_on_ray

    return fit_on_ray(task, directory, num_workers)


if __name__ == "__main__":
    sys.exit(command(Train.from_preset, run))
