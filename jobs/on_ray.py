"""Starting Ray on this machine, joining the cluster that runs this job, or sending a job to one."""

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SETTINGS = {
    "RAY_AUTH_MODE": "token",  # nobody without the token reaches a cluster of ours
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps every listener on 127.0.0.1
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_AIR_NEW_OUTPUT": "0",  # the older output of Ray Tune knows silence
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report waits for the next poll
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_maximum_startup_concurrency": "4",  # or it warns of ours on a machine of two cores
    "OMP_NUM_THREADS": "1",  # workers share the cores; one thread each
}
TRIES = 3  # to start Ray on a machine that is busy otherwise
AGENT_SECONDS = 60.0  # that a cluster which has just started may want before it takes jobs
NO_AGENT = "No available agent"  # as Ray says that it does not take them yet
LOGICAL_CPUS = 8  # more than a laptop may have: stages sleep while their parts run


def start_ray() -> None:
    """Starts Ray in this machine's loopback, or joins the cluster where one is set; idempotent."""
    in_cluster = _in_cluster()
    if not in_cluster:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    if in_cluster:
        ray.init(logging_level=logging.ERROR)
        return
    for tries_left in reversed(range(TRIES)):
        try:
            with _silent_stderr():
                ray.init(
                    address="local",  # not some cluster that happens to run here
                    num_cpus=max(LOGICAL_CPUS, os.cpu_count() or 1),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={
                        "env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
                    },
                )
            break
        except Exception as error:
            # Ray has no kind of its own for this, and does not wait longer than 30 seconds.
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not tries_left:
                raise OSError("Ray does not start in time: this machine is too busy") from None
    _guard_token()


def require_gpus(count: int) -> None:
    """Checks that there is a GPU for each of `count` workers, for whom Ray would wait without end.
    A cluster may grow, and is not asked.

    Raises:
        ValueError: this machine has fewer.
    """
    import ray

    found = int(ray.cluster_resources().get("GPU", 0))
    if found < count and not _in_cluster():
        raise ValueError(
            f"{count} workers need a GPU each and this machine has {found}: give --num-workers, 0 "
            "for this process, or --train.device cpu"
        )


def _in_cluster() -> bool:
    return "RAY_ADDRESS" in os.environ or "RAY_JOB_ID" in os.environ


def _guard_token() -> None:
    """Lets this user alone read the token that Ray has written."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if path.exists():
        with contextlib.suppress(PermissionError):  # another user's, who lets us read it
            path.chmod(0o600)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keeps what Ray's core writes about its own log level off the terminal; errors are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def submit_and_follow(
    entrypoint: str, *, address: str, working_dir: Path, excludes: Sequence[str]
) -> int:
    """Returns the exit code of `entrypoint`, run on the cluster at `address`; prints its log.

    Args:
        working_dir: the directory whose files go with the job, without `excludes` (.gitignore's
            patterns) and without what its .gitignore names.

    Raises:
        ValueError: the cluster cannot be reached, or refuses us, or has gone.
    """
    # Not above: Ray reads its environment when it is imported.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        environment = {"working_dir": str(working_dir), "excludes": list(excludes)}
        job = _submit(client, entrypoint, environment)
    except AuthenticationError:
        raise ValueError(
            f"{address} wants the cluster's token and there is none here, or another: put it in "
            "RAY_AUTH_TOKEN, or its file's path in RAY_AUTH_TOKEN_PATH"
        ) from None
    except RuntimeError as error:
        if NO_AGENT in str(error):
            raise ValueError(
                f"{address} answers, and has no agent that takes jobs: where another Ray on its "
                "host has the agent's port, stop that one, or start this one with another "
                "--dashboard-agent-listen-port"
            ) from None
        raise ValueError(f"{address} refuses the job: {_first_line(error)}") from None
    except OSError as error:  # as those of `requests` are
        raise ValueError(f"no job server answers at {address}: {_first_line(error)}") from None
    print(f"submit: {job} runs {entrypoint!r} at {address}", flush=True)
    try:
        asyncio.run(_print_log(client, job))
        return _exit_code(client, job)
    except KeyboardInterrupt:
        print(f"submit: {job} goes on; `ray job stop --address {address} {job}` ends it")
        raise
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{address} does not answer any more, and {job} may go on: {_first_line(error)}"
        ) from None


def _submit(client: "JobSubmissionClient", entrypoint: str, environment: dict[str, Any]) -> str:
    """Returns the job, once the cluster takes it: its agent starts later than what answers here."""
    give_up = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > give_up:
                raise
        time.sleep(1)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


async def _print_log(client: "JobSubmissionClient", job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _exit_code(client: "JobSubmissionClient", job: str) -> int:
    info = client.get_job_info(job)
    while not info.status.is_terminal():
        time.sleep(0.5)
        info = client.get_job_info(job)
    print(f"submit: {job} {info.status.lower()}", flush=True)
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None:
        print(f"submit: {info.message}", flush=True)
    return info.driver_exit_code or 1
