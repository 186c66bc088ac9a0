"""Distil the teacher into a student: `python -m jobs.distill [preset] [flags]`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.command import command
from jobs.on_ray import require_gpus, start_ray
from jobs.presets import Preset
from jobs.train import SCRATCH, train_model
from recsys.checkpoint import Origin
from recsys.compress.shrink import INITIAL, Start, require_part, write_initial
from recsys.data.sequences import Dataset
from recsys.distill.answers import LiveTeacher, TargetsConfig, require_scores
from recsys.distill.objective import Distillation, DistillConfig
from recsys.distill.targets import require_room, write_targets
from recsys.evaluate.report import check_catalogue
from recsys.files import fingerprint, run_stage
from recsys.models import StudentConfig, load_model
from recsys.train.config import TrainConfig, find_device
from recsys.train.fit import NumWorkers, Task, most
from recsys.train.objective import LossConfig, objective


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Writes the teacher's answers once, then trains a student on them and on the log."""

    dataset: Path
    """The dataset, from jobs.prepare."""
    teacher: Path
    """The teacher's model directory."""
    targets: Path
    """Where the teacher's answers go, unless it is asked live; those of another teacher are
    replaced, so give one that is not the run's own a place of its own."""
    output: Path
    """Where the student goes."""
    model: StudentConfig
    """The student's shape."""
    keep: TargetsConfig
    """What is kept of the teacher's answers."""
    distill: DistillConfig
    """How the student listens to the teacher."""
    start: Start = "auto"
    """Where the student's weights start: as the teacher's, cut to the student's shape (teacher), at
    random (fresh), or as the teacher's where both shapes allow it (auto)."""
    live: bool = False
    """Whether the teacher is asked in every step, so that nothing is written: for a log that is
    small, or targets that are too large."""
    train: TrainConfig
    """How students are trained."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What a student that is trained alone minimises."""
    alone: Path | None = None
    """Where the same student, trained without the teacher, goes; none to leave it out."""
    num_target_workers: int | None = None
    """Workers that write the answers under Ray Data, 0 for this process; none for as many as train
    the student, at most."""
    num_workers: NumWorkers = 0
    """Data-parallel workers that train a student under Ray Train, or the fewest and the most; 0
    for this process."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Distill":
        """Returns the preset's distillation in a run directory."""
        return cls(
            dataset=directory / "dataset",
            teacher=directory / "teacher",
            targets=directory / "targets",
            output=directory / "student",
            model=preset.student,
            keep=preset.keep,
            distill=preset.distill,
            start=preset.start,
            live=preset.live,
            train=preset.train_student,
            loss=preset.loss,
            num_workers=preset.num_workers,
        )


def run(job: Distill) -> Path:
    """Distils, as far as that is not done, and returns the student's model directory."""
    require(job)
    check_catalogue(job.teacher, Dataset.open(job.dataset))
    require_scores(job.teacher, job.keep)
    if job.start == "teacher":
        _require_part(job)
    if job.alone is not None:
        _train_alone(job, job.alone)
    made_from = {"dataset": job.dataset}
    if not job.live:
        run_stage(
            job.targets,
            name="targets",
            config=job.keep,
            inputs={**made_from, "teacher": job.teacher},
            build=lambda directory: _write_targets(job, directory),
        )
        made_from["targets"] = job.targets
    if job.live or job.start != "fresh":
        made_from["teacher"] = job.teacher
    asked = job.keep if job.live else None
    run_stage(
        job.output,
        name="distill",
        config=(job.model, job.distill, job.train, job.num_workers, job.start, asked),
        inputs=made_from,
        build=lambda directory: _distill(job, directory, made_from),
        scratch=(*SCRATCH, INITIAL),
    )
    return job.output


def require(job: Distill) -> None:
    """Checks, before there is a teacher, that the loss can read what is kept and shared out.

    Raises:
        ValueError: it cannot; with the flags that mend it.
    """
    job.distill.require(job.keep)
    job.distill.require_table(shared_out=job.train.shares_out(most(job.num_workers)))


def _require_part(job: Distill) -> None:
    try:
        require_part(load_model(job.teacher), job.model)
    except ValueError as error:
        raise ValueError(f"{error}; or take --start fresh") from None


def _distill(job: Distill, directory: Path, made_from: Mapping[str, Path]) -> None:
    source = LiveTeacher(job.teacher, job.keep) if job.live else job.targets
    length = job.train.row_length or job.model.max_length
    taught = Distillation(source, job.distill, job.dataset, length=length)
    dataset = Dataset.open(job.dataset)
    initial, why_not = write_initial(job.start, job.teacher, job.model, dataset, directory)
    if why_not:
        print(f"the student starts from noise: {why_not}", flush=True)
    task = Task(
        dataset=job.dataset,
        model=job.model,
        train=job.train,
        objective=taught,
        initial=initial,
    )
    origin = _origin(made_from, job.distill.leave_out_seen)
    train_model(task, directory, origin=origin, num_workers=job.num_workers)


def _train_alone(job: Distill, output: Path) -> None:
    task = Task(
        dataset=job.dataset,
        model=job.model,
        train=job.train,
        objective=objective(job.loss, job.dataset),
    )
    made_from = {"dataset": job.dataset}
    origin = _origin(made_from, job.loss.leave_out_seen)
    run_stage(
        output,
        name="student-alone",
        config=(job.model, job.train, job.loss, job.num_workers),
        inputs=made_from,
        build=lambda directory: train_model(
            task, directory, origin=origin, num_workers=job.num_workers
        ),
        scratch=SCRATCH,
    )


def _origin(made_from: Mapping[str, Path], leave_out_seen: bool) -> Origin:
    parents = {name: fingerprint(path) for name, path in made_from.items()}
    return Origin(role="student", parents=parents, scores_seen=not leave_out_seen)


def _write_targets(job: Distill, directory: Path) -> None:
    teacher = load_model(job.teacher)
    require_room(Dataset.open(job.dataset), directory, job.keep, teacher.config.width)
    num_workers = job.num_target_workers
    if num_workers is None:
        num_workers = most(job.num_workers)
    if num_workers == 0:
        teacher.to(find_device(job.train.device))
        write_targets(teacher, Dataset.open(job.dataset), directory, job.keep)
        return
    start_ray()
    if job.train.device == "cuda":
        require_gpus(num_workers)
    from recsys.distill.on_ray import write_targets_on_ray

    asked = (job.teacher, job.dataset, directory, job.keep)
    write_targets_on_ray(*asked, num_workers, job.train.device)


if __name__ == "__main__":
    sys.exit(command(Distill.from_preset, run))
