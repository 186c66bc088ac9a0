"""The ways to start the endpoint: errors in one line, and `serve run` with cluster/serve.yaml.

tests/serve/test_on_ray.py asks an endpoint that `python -m jobs.serve` started.
"""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from jobs.serve import Serve, run
from recsys.serve.config import ServeConfig
from recsys.serve.environment import free_ports

ROOT = Path(__file__).resolve().parents[2]
write_model = runpy.run_path(str(ROOT / "tests" / "serve" / "tiny_model.py"))["write_model"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.serve", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_default_listens_on_loopback():
    assert Serve().host == "127.0.0.1"


def test_a_directory_that_is_no_model_is_one_line(tmp_path):
    result = command(str(tmp_path))
    assert result.returncode == 2
    assert "is not a model directory" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_damaged_model_is_refused_before_ray_starts(tmp_path):
    model = write_model(tmp_path / "model")
    (model / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match="is damaged"):
        run(Serve(model=model, port=free_ports(1)[0]))
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ


def test_a_proxy_that_ray_has_given_up_is_one_line(monkeypatch):
    from ray import serve
    from ray.exceptions import ActorDiedError

    from recsys.serve import on_ray

    def given_up(**_):
        raise ActorDiedError

    monkeypatch.setattr(serve, "start", given_up)
    with pytest.raises(RuntimeError, match="proxy has not started: is the machine busy"):
        on_ray.start(ServeConfig(model_directory="any"), host="127.0.0.1", port=1)


def test_a_taken_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            run(Serve(model=write_model(tmp_path / "model"), port=port))


def test_a_host_that_is_not_here_is_refused_by_its_name(tmp_path):
    words = r"cannot listen on 192\.0\.2\.1:8000: .* choose another with --host"
    with pytest.raises(ValueError, match=words):
        run(Serve(model=write_model(tmp_path / "model"), host="192.0.2.1"))


@pytest.mark.parametrize("port", [0, 70_000])
def test_a_port_that_cannot_be_is_refused(tmp_path, port):
    with pytest.raises(ValueError, match="give one from 1 to 65535"):
        run(Serve(model=write_model(tmp_path / "model"), port=port))


def test_serve_run_starts_the_same_endpoint_behind_ray_s_own_proxy(tmp_path):
    config = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    (port,) = free_ports(1)
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["model_directory"] = str(write_model(tmp_path / "model"))
    other = write_model(tmp_path / "other", sign=-1)
    override = [{"name": "Recommend", "user_config": {"model": str(other)}}]
    config["applications"][0]["deployments"] = override
    file, log = tmp_path / "serve.yaml", tmp_path / "log"
    file.write_text(yaml.safe_dump(config))
    process = serve_run(file, log)
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", process, log)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/recommend", json={"histories": [["c"]], "k": 2}
        )
        items = answer.json()["recommendations"][0]["items"]
        assert [item["item_id"] for item in items] == ["a", "b"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def serve_run(file: Path, log: Path) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **kept,
        **documented_environment(),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    with log.open("w") as output:
        return subprocess.Popen(
            [Path(sys.executable).with_name("serve"), "run", file],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )


def documented_environment() -> dict[str, str]:
    text = (ROOT / "cluster" / "serve.yaml").read_text()
    (line,) = re.findall(r"^# +export (RAY_\S+=.*)$", text, re.MULTILINE)
    return dict(word.split("=", 1) for word in line.split())


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    pytest.fail(log.read_text())
