"""Make one teacher of several: `python -m jobs.ensemble [preset] --members MODEL_DIR ...`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs.command import command
from jobs.presets import Preset
from recsys.checkpoint import Origin, read_model_config, scores_seen
from recsys.compress.package import package
from recsys.data.sequences import Dataset
from recsys.evaluate.report import check_catalogue
from recsys.files import fingerprint, run_stage
from recsys.models import join, load_model
from recsys.train.stacking import stacked_weights


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Adds up the scores of trained models; the result teaches like any other teacher."""

    members: tuple[Path, ...]
    """The model directories."""
    dataset: Path
    """The dataset that they were trained on."""
    output: Path
    """Where the ensemble's model directory goes."""
    weights: Literal["equal", "stacked"] = "equal"
    """What members count: all the same, or as much as makes validation items likeliest, for members
    that differ in quality or kind."""
    seed: int = 0
    """Of the bootstrap intervals, and of the users that weights are for."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Ensemble":
        """Returns the ensemble of the teacher alone of a run directory: name more members."""
        return cls(
            members=(directory / "teacher",),
            dataset=directory / "dataset",
            output=directory / "ensemble",
            seed=preset.train.seed,
        )


def run(job: Ensemble) -> Path:
    """Makes the ensemble, unless it is there, and returns its model directory."""
    inputs = {f"member-{number}": member for number, member in enumerate(job.members)}

    def build(directory: Path) -> None:
        dataset = Dataset.open(job.dataset)
        for member in job.members:
            check_catalogue(member, dataset)
        members = [load_model(member) for member in job.members]
        weights = ()
        if job.weights == "stacked":
            weights = stacked_weights(members, dataset, seed=job.seed)
            print(f"ensemble: weights {', '.join(f'{weight:.2f}' for weight in weights)}")
        package(
            join(members, weights),
            directory,
            dataset,
            origin=Origin(
                role="teacher",
                parents={name: fingerprint(member) for name, member in inputs.items()},
                scores_seen=all(scores_seen(read_model_config(member)) for member in job.members),
            ),
            seed=job.seed,
        )

    run_stage(
        job.output,
        name="ensemble",
        config=(job.weights, job.seed),
        inputs={"dataset": job.dataset, **inputs},
        build=build,
    )
    return job.output


if __name__ == "__main__":
    sys.exit(command(Ensemble.from_preset, run))
