"""Search students and compressions: `python -m jobs.search [preset] [flags]`."""

import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from jobs.command import command
from jobs.on_ray import start_ray
from jobs.presets import Preset
from recsys.compress.shrink import Start
from recsys.data.sequences import Dataset
from recsys.distill.answers import LiveTeacher, TargetsConfig
from recsys.distill.objective import Distillation, DistillConfig
from recsys.files import run_stage
from recsys.models import StudentConfig
from recsys.search.frontier import choose_point, references, require_points, write_frontier
from recsys.search.space import ChooseConfig, SearchConfig
from recsys.search.trial import Material
from recsys.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Search:
    """Trains, compresses and measures students, and writes the frontier."""

    dataset: Path
    """The dataset, from jobs.prepare."""
    teacher: Path
    """The teacher's model directory, for students to start as, and to compare with."""
    targets: Path
    """The teacher's answers, from jobs.distill, unless it is asked live."""
    models: tuple[Path, ...]
    """Model directories that are points of the frontier already."""
    output: Path
    """Where the frontier goes."""
    chosen: Path
    """Where the model goes that is chosen, to be served."""
    student: StudentConfig
    """What the search does not vary is taken from this shape."""
    distill: DistillConfig
    """How students listen to the teacher, but for its weight, which is searched for."""
    start: Start = "auto"
    """Where students start, as in jobs.distill."""
    train: TrainConfig
    """How students are trained, but for --search.epochs; a trial has one thread."""
    search: SearchConfig
    """How long to search, and over what."""
    choose: ChooseConfig
    """Which point is served; another choice does not search again."""
    keep: TargetsConfig = field(default_factory=TargetsConfig)
    """What a teacher is asked for live."""
    live: bool = False
    """Whether students ask the teacher in every step."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Search":
        """Returns the preset's search in a run directory."""
        return cls(
            dataset=directory / "dataset",
            teacher=directory / "teacher",
            targets=directory / "targets",
            models=(directory / "student", directory / "compressed"),
            output=directory / "frontier",
            chosen=directory / "chosen",
            student=preset.student,
            keep=preset.keep,
            distill=preset.distill,
            start=preset.start,
            train=preset.train_student,
            search=preset.search,
            choose=preset.choose,
            live=preset.live,
        )


def run(job: Search) -> Path:
    """Searches, unless that is done, and returns where it has put the model that is chosen."""
    seeds = {path.name: path for path in job.models}
    if len(seeds) < len(job.models):
        raise ValueError(f"two of the models have the same name: {', '.join(map(str, job.models))}")
    require_points(job.models, job.teacher, Dataset.open(job.dataset))
    answers = {} if job.live else {"targets": job.targets}
    run_stage(
        job.output,
        name="search",
        config=(
            job.student,
            job.distill,
            job.start,
            job.train,
            replace(job.search, max_concurrent=1),
            job.keep if job.live else None,
        ),
        inputs={
            "dataset": job.dataset,
            "teacher": job.teacher,
            **answers,
            **{f"model {name}": path for name, path in seeds.items()},  # one may be a "teacher"
        },
        build=lambda directory: _search(job, directory, seeds),
        scratch=("points", "study"),
    )
    picked = choose_point(job.output, job.choose)
    print(f"  {job.output / 'frontier.html'}; chosen: {picked.name}", flush=True)
    run_stage(
        job.chosen,
        name="choose",
        config=picked.name,
        inputs={"frontier": job.output},
        build=lambda directory: _copy(picked, directory),
    )
    return job.chosen


def _copy(picked: Path, directory: Path) -> None:
    shutil.copytree(picked, directory, dirs_exist_ok=True)


def _search(job: Search, directory: Path, seeds: dict[str, Path]) -> None:
    material = Material(
        dataset=job.dataset.resolve(),
        teacher=LiveTeacher(job.teacher, job.keep) if job.live else job.targets.resolve(),
        start=job.start,
        start_from=job.teacher.resolve(),
        train=replace(job.train, epochs=job.search.epochs, num_threads=1),
    )
    if job.search.num_trials:
        # Refused now, and not in every trial.
        length = job.train.row_length or job.student.max_length
        Distillation(material.teacher, job.distill, material.dataset, length=length)
        start_ray()
        from recsys.search.on_ray import search

        search(material, job.student, job.distill, job.search, directory)
    dataset = Dataset.open(job.dataset)
    write_frontier(
        directory, seeds=seeds, dataset=dataset, references=references(job.teacher, dataset)
    )


if __name__ == "__main__":
    sys.exit(command(Search.from_preset, run))
