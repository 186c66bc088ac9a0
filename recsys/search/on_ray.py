"""The search by Ray Tune: Optuna's multi-objective sampler proposes, trials measure."""

import logging
import os
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune import Callback, RunConfig, TuneConfig, Tuner
from ray.tune.search.optuna import OptunaSearch
from tqdm import tqdm

from recsys.distill.objective import DistillConfig
from recsys.models import StudentConfig
from recsys.search.pareto import OBJECTIVES
from recsys.search.space import SearchConfig, choices, point_from
from recsys.search.trial import Material, measure

STUDY = "study"


def search(
    material: Material,
    student: StudentConfig,
    distill: DistillConfig,
    config: SearchConfig,
    directory: Path,
) -> None:
    """Measures `config.num_trials` points; each leaves its directory below `directory`/points.

    A search that was interrupted goes on: the sampler remembers, and what was measured stays.

    Raises:
        ValueError: no trial could be measured.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Ray's own handler of Ctrl-C would end a search as if it was done.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    directory = directory.resolve()
    points = directory / "points"
    points.mkdir(exist_ok=True)

    def trial(sample: dict[str, Any]) -> dict[str, float]:
        row = measure(point_from(sample, student, distill, config), material, points)
        return {name: row[name] for name in OBJECTIVES}

    trainable = tune.with_resources(trial, {"cpu": 1})
    results = _tuner(trainable, config, directory).fit()
    if results.num_errors:
        first = str(results.errors[0]).strip().splitlines()[-1]
        print(f"search: {results.num_errors} of {len(results)} trials failed; the first: {first}")
        if results.num_errors == len(results):
            raise ValueError(f"every trial of the search failed: {first}")


def _tuner(trainable: Any, config: SearchConfig, directory: Path) -> Tuner:
    storage = directory / STUDY
    if Tuner.can_restore(str(storage)):
        return Tuner.restore(str(storage), trainable, resume_errored=True)
    goals = ["max" if more_is_better else "min" for more_is_better in OBJECTIVES.values()]
    sampler = OptunaSearch(metric=list(OBJECTIVES), mode=goals, seed=config.seed)
    return Tuner(
        trainable,
        param_space={name: tune.choice(list(values)) for name, values in choices(config).items()},
        tune_config=TuneConfig(
            search_alg=sampler,
            num_samples=config.num_trials,
            max_concurrent_trials=config.max_concurrent,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name=STUDY,
            storage_path=str(directory),
            verbose=0,
            callbacks=[_Progress(config.num_trials)],
        ),
    )


class _Progress(Callback):
    """A bar of finished trials."""

    def __init__(self, total: int):
        self.total = total
        self.bar: tqdm | None = None

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if self.bar is None:
            self.bar = tqdm(total=self.total, desc="search", disable=None, leave=False)
        self.bar.update()

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"total": self.total, "bar": None}
