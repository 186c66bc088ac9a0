"""Compress a student: `python -m jobs.compress [preset] [flags]`."""

import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from jobs.command import command
from jobs.presets import Preset
from jobs.recipes import RecipeFlag
from jobs.train import train_on
from recsys.checkpoint import Origin, read_model_config, scores_seen
from recsys.compress import Recover, compress
from recsys.compress.package import calibration_histories, package
from recsys.compress.recover import recovery
from recsys.data.sequences import Dataset
from recsys.distill.answers import LiveTeacher, TargetsConfig
from recsys.distill.objective import Distillation, DistillConfig
from recsys.files import fingerprint, run_stage
from recsys.models import load_model
from recsys.train.config import TrainConfig
from recsys.train.fit import NumWorkers, most


@dataclass(frozen=True, kw_only=True)
class Compress:
    """Applies a recipe to a model; steps that ask for it are followed by recovery training."""

    dataset: Path
    """The dataset, from jobs.prepare."""
    model: Path
    """The model directory to compress."""
    teacher: Path
    """The teacher's model directory, for recovery that asks it live."""
    targets: Path
    """The teacher's answers, which recovery listens to; not read where no step asks for it."""
    output: Path
    """Where the compressed model directory goes."""
    recipe: RecipeFlag
    """The steps in order, such as `prune-heads=2 factorize-items=16+3 int8`; +3 asks for three
    epochs of recovery, with rounded weights after int8+3 or int4+3. Or by name: faithful (int8),
    balanced (int4+3), tiny (codebook-items=8+3 int4+3)."""
    distill: DistillConfig
    """How recovery listens to the teacher."""
    train: TrainConfig
    """How recovery trains; a step says for how many epochs."""
    num_workers: NumWorkers = 0
    """Data-parallel workers of recovery under Ray Train, or the fewest and the most; 0 for this
    process."""
    keep: TargetsConfig = field(default_factory=TargetsConfig)
    """What a teacher is asked for live."""
    live: bool = False
    """Whether recovery asks the teacher in every step, as the student did."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Compress":
        """Returns the preset's compression in a run directory."""
        return cls(
            dataset=directory / "dataset",
            model=directory / "student",
            teacher=directory / "teacher",
            targets=directory / "targets",
            output=directory / "compressed",
            recipe=preset.recipe,
            keep=preset.keep,
            live=preset.live,
            distill=preset.distill,
            train=preset.train_student,
            num_workers=preset.num_workers,
        )


def run(job: Compress) -> Path:
    """Compresses, unless that is done, and returns the compressed model directory."""
    inputs = {"dataset": job.dataset, "model": job.model}
    if _recovers(job):
        job.distill.require_table(shared_out=job.train.shares_out(most(job.num_workers)))
        inputs |= {"teacher": job.teacher} if job.live else {"targets": job.targets}
    run_stage(
        job.output,
        name="compress",
        config=(
            job.recipe,
            job.distill,
            job.train,
            job.num_workers,
            job.keep if job.live else None,
        ),
        inputs=inputs,
        build=lambda directory: _compress(job, directory),
        scratch=("recovery-*",),
    )
    return job.output


def _recovers(job: Compress) -> bool:
    return any(step.recover_epochs for step in job.recipe)


def _compress(job: Compress, directory: Path) -> None:
    started = time.perf_counter()
    dataset = Dataset.open(job.dataset)
    forgets_seen = _recovers(job) and job.distill.leave_out_seen
    model = load_model(job.model)
    length = job.train.row_length or model.config.max_length
    train = replace(job.train, row_length=length)  # whatever the recipe makes of the model
    model, precision = compress(
        model,
        job.recipe,
        histories=calibration_histories(dataset),
        recover=_recovery(job, train, directory) if _recovers(job) else None,
    )
    package(
        model,
        directory,
        dataset,
        origin=Origin(
            role="compressed",
            parents={"model": fingerprint(job.model), "dataset": fingerprint(job.dataset)},
            recipe=job.recipe,
            scores_seen=scores_seen(read_model_config(job.model)) and not forgets_seen,
        ),
        seed=job.train.seed,
        precision=precision,
        extra={"train_seconds": round(time.perf_counter() - started, 1)},
    )


def _recovery(job: Compress, train: TrainConfig, directory: Path) -> Recover:
    source = LiveTeacher(job.teacher, job.keep) if job.live else job.targets
    return recovery(
        job.dataset,
        Distillation(source, job.distill, job.dataset, length=train.row_length),
        train,
        directory,
        partial(train_on, num_workers=job.num_workers),
    )


if __name__ == "__main__":
    sys.exit(command(Compress.from_preset, run))
