"""From a raw log to a served, compressed student: `python -m jobs.pipeline [preset] [flags]`."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jobs import compress, distill, prepare, search, train
from jobs.command import command
from jobs.presets import Preset
from recsys.data.sequences import Dataset
from recsys.distill.answers import require_length
from recsys.evaluate.baselines import baselines
from recsys.evaluate.cost import hardware, versions
from recsys.evaluate.report import evaluate_scorer, row, table
from recsys.files import read_json, write_json

MODELS = ("teacher", "student-alone", "student", "compressed", "chosen")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Runs every stage; what is done already is not done again."""

    preset: Preset
    """The settings of all stages."""
    output: Path
    """The run directory."""
    log: str | None = None
    """The interaction log, a path or URI; none for the preset's own source."""
    items: str | None = None
    """The item table, a path or URI."""
    order_column: str | None = None
    """The column that orders events of the same time."""
    split: Literal["leave-one-out", "global-time-cut"] | None = None
    """Whether each user's last two items are held out, or what comes after two moments; none for
    the preset's own choice."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Pipeline":
        """Returns the preset's pipeline in a run directory."""
        return cls(preset=preset, output=directory)


def run(job: Pipeline) -> dict:
    """Runs the pipeline, prints its table, and returns what it wrote as summary.json."""
    preset = _with_flags(job)
    directory = job.output
    distillation = distill.Distill.from_preset(preset, directory)
    # Before hours of a teacher's training:
    distill.require(distillation)
    _require_teacher(preset)
    prepare.run(prepare.Prepare.from_preset(preset, directory))
    train.run(train.Train.from_preset(preset, directory))
    distill.run(replace(distillation, alone=directory / "student-alone"))
    compress.run(compress.Compress.from_preset(preset, directory))
    search.run(search.Search.from_preset(preset, directory))
    summary = _summary(preset, directory)
    write_json(directory / "summary.json", summary)
    _show(directory, summary)
    return summary


def _require_teacher(preset: Preset) -> None:
    """Checks that the teacher that will be trained can be asked what it is to be asked."""
    if preset.loss.leave_out_seen and not preset.keep.leave_out_seen:
        raise ValueError(
            "the teacher is asked about what users have had, which it would not learn: give "
            "--preset.loss.no-leave-out-seen, too, or leave --preset.keep.no-leave-out-seen and "
            "--preset.distill.no-leave-out-seen out"
        )
    if preset.live:
        length = preset.train_student.row_length or preset.student.max_length
        require_length(preset.teacher.max_length, length)


def _with_flags(job: Pipeline) -> Preset:
    given = {
        "log": job.log,
        "items": job.items,
        "order_column": job.order_column,
        "split": job.split,
    }
    config = replace(job.preset.prepare, **{k: v for k, v in given.items() if v is not None})
    return replace(job.preset, prepare=config.resolved())


def _summary(preset: Preset, directory: Path) -> dict:
    dataset = Dataset.open(directory / "dataset")
    rows = [
        row(name, evaluate_scorer(score, dataset, "test", seed=0))
        for name, score in baselines(dataset).items()
    ]
    rows += [row(name, read_json(directory / name / "report.json")) for name in MODELS]
    stages = ("dataset", "teacher", "targets", *MODELS[1:], "frontier")
    done = {name: directory / name / "stage.json" for name in stages}
    times = {name: read_json(path)["seconds"] for name, path in done.items() if path.exists()}
    best = dataset.manifest.get("best_possible")
    return {
        "seconds": round(sum(times.values()), 1),
        "stages": times,
        "rows": rows,
        "best_possible": best["test"] if best else None,
        "command": shlex.join(["python", "-m", "jobs.pipeline", *sys.argv[1:]]),
        "seed": preset.train.seed,
        "hardware": hardware(),
        "versions": versions(),
    }


def _show(directory: Path, summary: dict) -> None:
    print(f"\n{table(summary['rows'])}")
    if summary["best_possible"]:
        print(f"best possible on this log: NDCG@10 {summary['best_possible']['ndcg@10']:.4f}")
    print(f"all stages: {summary['seconds']:.0f} s")
    print(f"\nfrontier: {directory / 'frontier' / 'frontier.html'}")
    print(f"serve it: python -m jobs.serve {directory / 'chosen'}")


if __name__ == "__main__":
    sys.exit(command(Pipeline.from_preset, run))
