"""The systems that are compared, each in an environment of its own."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import ROOT
from benchmarks.systems.work import Work
from recsys.config import to_json
from recsys.files import read_json, write_json

ENVIRONMENTS = ROOT / "runs" / "bench" / "environments"


class System(NamedTuple):
    """A system, and how it is run."""

    name: str
    """Its module is `benchmarks.systems.train_<name>`."""
    packages: tuple[str, ...] = ()
    """What its environment needs, from PyPI; none for the environment of this process."""


RECSYS = System("recsys")
# Arrow and tqdm are for reading the dataset and ranking it with recsys's own code.
RECTOOLS = System(
    "rectools", ("torch==2.13.0", "rectools[torch]==0.19.0", "pyarrow>=20,<22", "tqdm")
)
# Later versions of NumPy, pandas and SciPy lack functions that RecBole 1.2.1 calls.
RECBOLE = System(
    "recbole",
    ("torch==2.13.0", "recbole==1.2.1", "numpy<2", "pandas<2.2", "scipy<1.14", "pyarrow>=20,<22"),
)


def python_of(system: System) -> Path:
    """Returns the interpreter of a system's environment, which is made where it is missing."""
    if not system.packages:
        return Path(sys.executable)
    directory = ENVIRONMENTS / system.name
    python, marker = directory / "bin" / "python", directory / "packages.json"
    if not (marker.exists() and read_json(marker) == list(system.packages)):
        venv.create(directory, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", *system.packages]
        subprocess.run(install, check=True)
        write_json(marker, list(system.packages))
    return python


def train(system: System, work: Work, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what a system's watch saw of `work`, done in a process of its own.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    runner = f"benchmarks.systems.train_{system.name}"
    # In a directory of its own, for systems that leave logs where they run.
    with tempfile.TemporaryDirectory() as directory:
        outcome = subprocess.run(
            [python_of(system), "-m", runner, json.dumps(to_json(work)), *flags],
            cwd=directory,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": str(work.num_threads),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(outcome.stdout.splitlines()[-1])
