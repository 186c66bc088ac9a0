"""Measure a model: `python -m jobs.evaluate [preset] --model MODEL_DIR [flags]`."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.command import command
from jobs.on_ray import start_ray
from jobs.presets import Preset
from recsys.checkpoint import GRAPH, read_model_config, scores_seen, verify_model
from recsys.data.sequences import Dataset
from recsys.evaluate.baselines import baselines
from recsys.evaluate.engine import OnnxModel
from recsys.evaluate.ranking import Ranking, Scorer, Split, rank_targets
from recsys.evaluate.report import (
    REPORT,
    accuracy,
    check_catalogue,
    cost,
    evaluate_scorer,
    row,
    table,
    update_report,
)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Ranks the whole catalogue for every user of a split, and measures bytes and milliseconds."""

    model: Path
    """The model directory; its graph is measured or, without one, its PyTorch model."""
    dataset: Path
    """The dataset that the model was trained on."""
    split: Split = "test"
    """Whose targets are ranked."""
    seed: int = 0
    """Of the bootstrap intervals."""
    keep_seen: bool = False
    """Rank without removing the items of the history: a protocol of its own."""
    baselines: bool = True
    """Also show popularity and the last-item Markov chain on the same users."""
    num_workers: int = 1
    """Processes that rank under Ray; 1 for this process, without Ray."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Evaluate":
        """Returns the evaluation of the chosen model of a run directory."""
        return cls(
            model=directory / "chosen", dataset=directory / "dataset", seed=preset.train.seed
        )


def run(job: Evaluate) -> dict[str, Any]:
    """Evaluates the model, writes its report.json, shows a table, and returns the report."""
    config = verify_model(job.model)
    if job.keep_seen and not scores_seen(config):
        raise ValueError(
            f"{job.model} has learned to rank what is new to a user, and nothing else: leave "
            "--keep-seen out"
        )
    dataset = Dataset.open(job.dataset)
    check_catalogue(job.model, dataset)
    ranking = _rank(job, dataset)
    report = {
        **accuracy(ranking, dataset, job.split, seed=job.seed, keep_seen=job.keep_seen),
        **cost(job.model, dataset, job.split),
    }
    rows = [*(_baselines(job, dataset) if job.baselines else []), row(config["role"], report)]
    print(table(rows))
    repeats = report["num_repeat_targets"]
    left_out = f"; {repeats:,} left out, who had met their target before" if repeats else ""
    print(f"{job.split}, {report['protocol']}: {report['num_users']:,} users ranked{left_out}")
    for name, what in (("cold", "items that training never met"), ("warm", "other items")):
        if name in report:
            part = report[name]
            print(
                f"  {part['num_users']:,} targets are {what}: NDCG@10 {part['ndcg@10']:.4f}, "
                f"HR@10 {part['hr@10']:.4f}"
            )
    if read_model_config(job.model) != config:
        raise ValueError(f"{job.model} was replaced while it was measured: measure it again")
    update_report(job.model, report)  # last: what was measured is shown where none can be written
    print(f"evaluate: {job.model / REPORT}")
    return report


def load_scorer(directory: Path) -> Scorer:
    """Returns the scorer of a model directory: the engine that serves or, without a graph, PyTorch.

    Raises:
        ValueError: there is no model in `directory`, or it is damaged.
    """
    if (directory / GRAPH).exists():
        return OnnxModel(directory).scores
    # Not above: a model with a graph is measured without PyTorch, as it is served.
    from recsys.models import load_model
    from recsys.models.interface import torch_scorer

    return torch_scorer(load_model(directory))


def _rank(job: Evaluate, dataset: Dataset) -> Ranking:
    if job.num_workers <= 1:
        score = load_scorer(job.model)
        return rank_targets(score, dataset, job.split, keep_seen=job.keep_seen, progress=True)
    start_ray()
    from recsys.evaluate.on_ray import rank_on_ray

    return rank_on_ray(
        partial(load_scorer, job.model.resolve()),
        job.dataset,
        job.split,
        num_workers=job.num_workers,
        keep_seen=job.keep_seen,
    )


def _baselines(job: Evaluate, dataset: Dataset) -> list[dict[str, Any]]:
    return [
        row(
            name,
            evaluate_scorer(score, dataset, job.split, seed=job.seed, keep_seen=job.keep_seen),
        )
        for name, score in baselines(dataset).items()
    ]


if __name__ == "__main__":
    sys.exit(command(Evaluate.from_preset, run))
