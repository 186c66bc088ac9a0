"""Serves a model directory over HTTP until Ctrl-C: `python -m jobs.serve MODEL_DIR`.

SIGHUP makes it read the directory again; new weights come into service without a lost request.
"""

import contextlib
import errno
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import tyro

from jobs import heed_interrupts
from recsys.checkpoint import verify_model
from recsys.serve.config import ServeConfig
from recsys.serve.environment import LOOPBACK, has_haproxy, set_environment


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serves a model directory over HTTP until Ctrl-C."""

    model: Annotated[Path, tyro.conf.Positional] = Path("runs/quickstart/chosen")
    """The model directory."""
    host: str = LOOPBACK
    """Where to listen; 0.0.0.0 for every interface of this host."""
    port: int = 8000
    """The port to listen on."""
    min_replicas: int = 1
    """Replicas kept when there are no requests."""
    max_replicas: int = 2
    """Replicas at most."""
    threads: int = 1
    """Threads of the engine in each replica."""
    batch_size: int = 64
    """Requests, of any callers, that go to the model together."""
    haproxy: bool = has_haproxy()
    """Whether HAProxy takes the requests; Ray's own proxy is many times slower."""


def run(job: Serve) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
        ValueError: the model cannot be served, or the port is taken.
    """
    verify_model(job.model)
    _require_free(job.host, job.port)
    config = ServeConfig(
        model_directory=str(job.model.resolve()),
        min_replicas=job.min_replicas,
        max_replicas=job.max_replicas,
        threads=job.threads,
        batch_size=job.batch_size,
    )
    with tempfile.TemporaryDirectory(prefix="recsys-", ignore_cleanup_errors=True) as directory:
        set_environment(os.environ, Path(directory), haproxy=job.haproxy)
        _serve(job, config)


def _serve(job: Serve, config: ServeConfig) -> None:
    # Ray reads its environment when it is imported.
    from jobs.on_ray import start_ray
    from recsys.serve import on_ray

    signals: SimpleQueue[int] = SimpleQueue()

    def keep(number: signal.Signals) -> None:
        signal.signal(number, lambda received, _: signals.put(received))

    keep(signal.SIGHUP)  # left to the system it would end the process, and leave Ray's behind
    start_ray()
    try:
        on_ray.start(config, host=job.host, port=job.port)
        keep(signal.SIGINT)
        keep(signal.SIGTERM)
        print(_greeting(job), flush=True)
        while signals.get() == signal.SIGHUP:
            _reload(lambda: on_ray.update(config))
        print("serve: stopping", flush=True)
    finally:
        # Ray reports the end of its own controller as a failure.
        with contextlib.redirect_stdout(None):
            on_ray.stop()


def _reload(update: Callable[[], None]) -> None:
    try:
        update()
        print("serve: reading the model again; /v1/model tells what is in service", flush=True)
    except Exception as error:  # whatever it is, what answers goes on answering
        print(f"serve: kept the model in service: {error}", flush=True)


def _greeting(job: Serve) -> str:
    host = LOOPBACK if job.host == "0.0.0.0" else job.host
    url = f"http://{host}:{job.port}"
    return (
        f"serve: {job.model} at {url} (docs: {url}/docs; Ctrl-C stops it)\n"
        f'curl {url}/v1/recommend -d \'{{"histories": [[]], "k": 5}}\''
    )


def _require_free(host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise ValueError(f"--port is {port}; give one from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            flag = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
            raise ValueError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with {flag}"
            ) from None


def main() -> None:
    """Runs the command line."""
    heed_interrupts()
    try:
        run(tyro.cli(Serve, prog="python -m jobs.serve", description=__doc__))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
