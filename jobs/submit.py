"""Sends a job to a Ray cluster and follows it: `python -m jobs.submit pipeline quickstart`.

Everything but `--address` goes to the job as it stands. The files of this checkout go with it and
are unpacked elsewhere, what is in runs/ stays behind: give a pipeline an absolute `--output`, and
any other job an absolute `--run`, on a cluster of several hosts one that all reach.
"""

import argparse
import logging
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs import heed_interrupts

JOBS = ("prepare", "train", "ensemble", "distill", "compress", "evaluate", "search", "pipeline")
ADDRESS = "http://127.0.0.1:8265"
ROOT = Path(__file__).resolve().parents[1]
EXCLUDES = (
    "/.git",
    "/.venv",
    "/venv",
    "/build",
    "/dist",
    "/runs",
    "/benchmarks/results",
    "__pycache__",
    "*.egg-info",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)


@dataclass(frozen=True, kw_only=True)
class Submit:
    """A job to run on a cluster."""

    job: str
    """Its name: the module in jobs/."""
    arguments: tuple[str, ...] = ()
    """Its command line."""
    address: str = ADDRESS
    """The dashboard of the cluster."""


def parse(arguments: list[str]) -> Submit:
    """Returns the job that a command line asks for; exits with a message if it asks for none."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        # `submit prepare --help` is the job's help.
        add_help=arguments[:1] in ([], ["-h"], ["--help"]),
    )
    parser.add_argument("job", choices=JOBS, help="the job to run")
    parser.add_argument("--address", default=ADDRESS, help=f"the cluster (default {ADDRESS})")
    known, rest = parser.parse_known_args(arguments)
    return Submit(job=known.job, arguments=tuple(rest), address=known.address)


def run(job: Submit) -> int:
    """Returns the exit code of the job, after printing its log as it comes.

    Raises:
        ValueError: the cluster cannot be reached or refuses us.
    """
    # The job client, unlike the cluster, does not turn the token on by itself.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from jobs.on_ray import submit_and_follow

    return submit_and_follow(
        entrypoint(job), address=job.address, working_dir=ROOT, excludes=list(EXCLUDES)
    )


def entrypoint(job: Submit) -> str:
    """Returns the command that the cluster runs."""
    return shlex.join(["python", "-m", f"jobs.{job.job}", *job.arguments])


def main() -> None:
    """Runs the command line; its exit code is the job's."""
    heed_interrupts()
    # Ray tells of every file that it leaves out of the package.
    logging.disable(logging.WARNING)
    try:
        sys.exit(run(parse(sys.argv[1:])))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
