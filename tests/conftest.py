"""A small dataset with something to learn, and Ray started once in a test process."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.on_ray import SETTINGS, start_ray

# Ray reads its environment when it is imported, which some test modules do.
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
# A shell has what it starts in the background ignore Ctrl-C, and what that starts in turn.
signal.signal(signal.SIGINT, signal.default_int_handler)

NUM_USERS, NUM_ITEMS = 60, 24
WITH_PROCESSES = {
    "test_on_ray.py",
    "test_pipeline.py",
    "test_serve.py",
    "test_sharded.py",
    "test_submit.py",
    "test_trial.py",
}
"""Files whose tests start clusters, servers and workers: Ray does not wait for long."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 2` those files run one after the other; the rest, file by file, beside them."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.split("::")[0])
            return "with processes" if path.name in WITH_PROCESSES else str(path)

    return Scheduling(config, log)


def toy_sequences(seed: int = 0) -> list[np.ndarray]:
    """Returns walks round a circle of items, with jumps; no item twice in a sequence."""
    generator = np.random.default_rng(seed)
    sequences = []
    for _ in range(NUM_USERS):
        length = int(generator.integers(3, 18))
        start = int(generator.integers(NUM_ITEMS))
        walk = (start + np.cumsum(generator.choice([1, 1, 1, 2], NUM_ITEMS))) % NUM_ITEMS + 1
        _, first = np.unique(walk, return_index=True)
        sequences.append(walk[np.sort(first)][:length].astype(np.int32))
    return sequences


@pytest.fixture(scope="session")
def dataset_directory(tmp_path_factory) -> Path:
    """A prepared dataset."""
    from recsys.data.on_ray import prepare
    from recsys.data.schema import PrepareConfig
    from recsys.files import run_stage

    directory = tmp_path_factory.mktemp("toy")
    log = directory / "log.csv"
    lines = ["user_id,item_id,timestamp"]
    for user, items in enumerate(toy_sequences()):
        lines += [f"u{user},i{item},{time}" for time, item in enumerate(items)]
    log.write_text("\n".join(lines))
    start_ray()
    config = PrepareConfig(source="log", log=str(log))
    output = directory / "dataset"
    run_stage(
        output, name="prepare", config=config, inputs={}, build=lambda path: prepare(config, path)
    )
    return output


@pytest.fixture(scope="session")
def dataset(dataset_directory):
    """The same, opened."""
    from recsys.data.sequences import Dataset

    return Dataset.open(dataset_directory)


@pytest.fixture(scope="session")
def store_targets():
    """Writes a teacher's answers as the stage does, with what was kept beside them."""
    from recsys.distill.targets import write_targets
    from recsys.files import run_stage

    def store(teacher, dataset, directory, config):
        run_stage(
            directory,
            name="targets",
            config=config,
            inputs={"dataset": dataset.path},
            build=lambda path: write_targets(teacher, dataset, path, config),
        )
        return directory

    return store


@pytest.fixture
def ray_started():
    """Ray, running."""
    start_ray()


@pytest.fixture
def titled(dataset, tmp_path):
    """The small dataset with titles "t1", "t2", ... and none for item 3."""
    from recsys.data.sequences import ITEMS, Dataset

    shutil.copytree(dataset.path, tmp_path / "titled")
    path = tmp_path / "titled" / ITEMS
    items = pq.read_table(path)
    titles = [None if row in (0, 3) else f"t{row}" for row in range(len(items))]
    pq.write_table(items.append_column("title", pa.array(titles)), path)
    return Dataset.open(tmp_path / "titled")
