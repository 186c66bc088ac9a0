"""Full ranking on Ray: a pool of workers, each holding the model and ranking parts of the users."""

from collections.abc import Callable
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import ActorPool
from tqdm import tqdm

from recsys.data.sequences import Dataset
from recsys.evaluate.ranking import Ranking, Scorer, Split, join, rank_targets

PARTS_PER_WORKER = 8  # small enough to show progress, and to lose little with a worker


class _Ranker:
    """Holds a scorer and the dataset; ranks a part of the users at a time."""

    def __init__(self, make_scorer: Callable[[], Scorer], dataset: Path):
        self.score, self.dataset = make_scorer(), Dataset.open(dataset)

    def rank(self, part: tuple[int, int], split: Split, keep_seen: bool) -> Ranking:
        return rank_targets(self.score, self.dataset, split, part=part, keep_seen=keep_seen)


def rank_on_ray(
    make_scorer: Callable[[], Scorer],
    dataset: Path,
    split: Split,
    *,
    num_workers: int,
    keep_seen: bool = False,
) -> Ranking:
    """Returns what `rank_targets` returns, from `num_workers` processes.

    A worker that dies is started again, and what it was ranking is ranked again.

    Args:
        make_scorer: loads the model in a worker.
        num_workers: no more than Ray has CPUs are started.

    Raises:
        ValueError: a score is not finite, the scores are not of the dataset's catalogue, or the
            workers died.
    """
    num_workers = max(1, min(num_workers, int(ray.cluster_resources().get("CPU", 1))))
    start = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(_Ranker).remote
    workers = [start(make_scorer, dataset.resolve()) for _ in range(num_workers)]
    num_parts = num_workers * PARTS_PER_WORKER
    parts = [(part, num_parts) for part in range(num_parts)]
    done = ActorPool(workers).map_unordered(
        lambda worker, part: worker.rank.remote(part, split, keep_seen), parts
    )
    bar = tqdm(done, desc=split, total=num_parts, disable=None, leave=False)
    try:
        return join([Ranking(*piece) for piece in bar])
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise ValueError(f"the workers that rank died: {str(error).splitlines()[0]}") from None
