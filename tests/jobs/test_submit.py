"""jobs.submit against a real local cluster, started as the head of cluster/local.yaml says."""

import contextlib
import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import ray

from jobs import on_ray
from jobs.submit import ADDRESS, Submit, entrypoint, parse
from recsys.checkpoint import verify_model
from recsys.serve.environment import free_ports

ROOT = Path(__file__).resolve().parents[2]


def test_arguments_after_the_job_are_the_job_s():
    job = parse(["pipeline", "quickstart", "--output", "a b", "--help", "--address", "http://x:1"])
    assert job == Submit(
        job="pipeline",
        arguments=("quickstart", "--output", "a b", "--help"),
        address="http://x:1",
    )
    assert entrypoint(job) == "python -m jobs.pipeline quickstart --output 'a b' --help"


def test_the_default_is_the_local_cluster():
    assert parse(["prepare"]) == Submit(job="prepare", address=ADDRESS)


@pytest.mark.parametrize("arguments", [[], ["serve"], ["pipelin"]])
def test_other_jobs_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert "pipeline" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Head:
    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    token = tmp_path_factory.mktemp("token") / "auth_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_ID")
    }
    return {**kept, "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path}


@pytest.fixture(scope="module")
def head(environment):
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    flags = [f"--{name}={port}" for name, port in ports.items()]
    flags += ["--num-cpus=2", "--object-store-memory=100000000"]
    # Any free ports, so that two clusters on a host stay apart.
    flags += ["--min-worker-port=0", "--max-worker-port=0"]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        process = start_head([*flags, f"--temp-dir={directory}"], directory, environment)
        try:
            address = f"http://127.0.0.1:{ports['dashboard-port']}"
            wait_for_dashboard(address, process, Path(directory, "head.log"))
            yield Head(address=address, environment=environment)
        finally:
            # Asked to stop, Ray takes half a minute once it has run workers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start_head(flags: list[str], directory: str, environment: dict[str, str]) -> subprocess.Popen:
    with Path(directory, "head.log").open("w") as log:
        return subprocess.Popen(
            ["/bin/sh", "-c", f"exec env {documented_line()} {shlex.join(flags)}"],
            env=environment,
            cwd=directory,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def documented_line() -> str:
    text = (ROOT / "cluster" / "local.yaml").read_text()
    found = re.search(r"^# +(RAY_\S+=.* ray start --head .*)$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def wait_for_dashboard(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(960):
        assert process.poll() is None, log.read_text()
        try:
            # Any answer will do: without the token it is a refusal.
            httpx.get(f"{address}/api/version")
            return
        except httpx.TransportError:
            time.sleep(0.25)
    pytest.fail(f"no dashboard after four minutes: {log.read_text()}")


def start(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", *words],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_jobs_run_and_their_logs_and_exit_codes_come_back(head):
    good = start(head.environment, "prepare", "--help", "--address", head.address)
    bad = start(head.environment, "prepare", "no-such-preset", "--address", head.address)
    log, errors = good.communicate(timeout=400)
    assert (good.returncode, errors) == (0, ""), log + errors
    assert "usage: python -m jobs.prepare" in log
    assert log.splitlines()[-1].endswith("succeeded")
    log, errors = bad.communicate(timeout=400)
    assert (bad.returncode, errors) == (2, ""), log + errors
    assert "no-such-preset" in log
    assert log.splitlines()[-1].endswith("failed")


def test_a_submitted_training_leaves_a_model_where_it_was_told(head, tmp_path):
    size = ["--synthetic.num-users=100", "--synthetic.num-items=300", "--synthetic.num-families=20"]
    dataset = f"{tmp_path}/dataset"
    run_job(head, "prepare", *size, f"--output={dataset}")
    shape = ["--model.width=16", "--model.max-length=16", "--train.epochs=1"]
    run_job(head, "train", f"--dataset={dataset}", f"--output={tmp_path}/teacher", *shape)
    assert verify_model(tmp_path / "teacher")["role"] == "teacher"


def run_job(head: Head, *words: str) -> None:
    process = start(head.environment, *words, "--address", head.address)
    log, errors = process.communicate(timeout=400)
    assert (process.returncode, errors) == (0, ""), log + errors


def one_line(environment: dict[str, str], *words: str) -> str:
    process = start(environment, *words)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_a_wrong_token_is_one_line(head):
    wrong = {**head.environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    assert "RAY_AUTH_TOKEN" in one_line(wrong, "prepare", "--address", head.address)


def test_no_token_is_one_line(head, tmp_path):
    without = {**head.environment, "HOME": str(tmp_path)}
    without.pop("RAY_AUTH_TOKEN_PATH")
    assert "RAY_AUTH_TOKEN" in one_line(without, "prepare", "--address", head.address)


class Dying(BaseHTTPRequestHandler):
    """Says which version it is, and hangs up on whoever asks for more."""

    def do_GET(self):
        if self.path == "/api/version":
            self.answer(200, json.dumps({"version": "4", "ray_version": ray.__version__}).encode())
        self.close_connection = True

    do_PUT = do_POST = do_GET

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def served_by(cluster: type[Dying]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), cluster) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refused_in_one_line_by(cluster: type[Dying], environment: dict[str, str]) -> None:
    with served_by(cluster) as address:
        assert address in one_line(environment, "prepare", "--address", address)


def test_a_cluster_that_dies_is_one_line(environment):
    refused_in_one_line_by(Dying, environment)


class Late(Dying):
    """Has every package, and no agent for the first jobs; hangs up on the next."""

    jobs = 0
    late_for = 1

    def do_GET(self):
        if self.path.startswith("/api/packages"):
            self.answer(200, b"{}")
        else:
            super().do_GET()

    do_PUT = do_GET

    def do_POST(self):
        type(self).jobs += 1
        if self.jobs <= self.late_for:
            self.answer(500, b"No available agent to submit job, please try again later.")
        self.close_connection = True


def test_a_cluster_whose_agent_is_late_is_asked_again(environment):
    refused_in_one_line_by(Late, environment)
    assert Late.jobs == 2


class Without(Late):
    """Never has an agent."""

    late_for = sys.maxsize


def test_a_cluster_whose_agent_never_comes_says_what_may_be_in_its_way(tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "AGENT_SECONDS", 0.5)
    with served_by(Without) as address, pytest.raises(ValueError, match="another Ray") as refused:
        on_ray.submit_and_follow("true", address=address, working_dir=tmp_path, excludes=[])
    assert str(refused.value).startswith(f"{address} answers, and has no agent")
    assert Without.jobs > 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "nonsense"])
def test_an_address_without_a_cluster_is_one_line(environment, address):
    assert address in one_line(environment, "prepare", "--address", address)
