"""Compress a student: `python -m jobs.compress [preset] [flags]`."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.command import command
from jobs.presets import Preset
from recsys.compress import Recipe, compress
from recsys.compress.package import calibration_histories, package
from recsys.compress.recover import recovery
from recsys.data.sequences import Dataset
from recsys.distill.objective import Distillation, DistillConfig
from recsys.files import fingerprint, run_stage
from recsys.models import load_model
from recsys.train.loop import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Compress:
    """Applies a recipe to a model; steps that ask for it are followed by recovery training."""

    dataset: Path
    """The dataset, from jobs.prepare."""
    model: Path
    """The model directory to compress."""
    targets: Path
    """The teacher's answers, which recovery listens to."""
    output: Path
    """Where the compressed model directory goes."""
    recipe: Recipe
    """The steps, in order."""
    distill: DistillConfig
    """How recovery listens to the teacher."""
    train: TrainConfig
    """How recovery trains; a step says for how many epochs."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Compress":
        """Returns the preset's compression in a run directory."""
        return cls(
            dataset=directory / "dataset",
            model=directory / "student",
            targets=directory / "targets",
            output=directory / "compressed",
            recipe=preset.recipe,
            distill=preset.distill,
            train=preset.train_student,
        )


def run(job: Compress) -> Path:
    """Compresses, unless that is done, and returns the compressed model directory."""
    inputs = {"dataset": job.dataset, "model": job.model, "targets": job.targets}
    run_stage(
        job.output,
        name="compress",
        config=(job.recipe, job.distill, job.train),
        inputs=inputs,
        build=lambda directory: _compress(job, directory),
    )
    return job.output


def _compress(job: Compress, directory: Path) -> None:
    dataset = Dataset.open(job.dataset)
    model, precision = compress(
        load_model(job.model),
        job.recipe,
        histories=calibration_histories(dataset),
        recover=recovery(job.dataset, Distillation(job.targets, job.distill), job.train, directory),
    )
    parents = {"model": fingerprint(job.model), "dataset": fingerprint(job.dataset)}
    seed = job.train.seed
    package(
        model,
        directory,
        dataset,
        role="compressed",
        seed=seed,
        precision=precision,
        parents=parents,
    )
    for checkpoints in directory.glob("recovery-*"):
        shutil.rmtree(checkpoints)


if __name__ == "__main__":
    sys.exit(command(Compress.from_preset, run))
