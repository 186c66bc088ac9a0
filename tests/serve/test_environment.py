import subprocess

import pytest

from recsys.serve.environment import PORTS, free_ports, has_haproxy, set_environment, write_wrapper


def test_two_endpoints_on_a_host_share_no_port(tmp_path):
    ports = set()
    for name in ("one", "two"):
        environment: dict[str, str] = {}
        (tmp_path / name).mkdir()
        set_environment(environment, tmp_path / name, haproxy=True)
        ports |= {environment[port] for port in PORTS}
    assert len(ports) == 2 * len(PORTS)


def test_what_the_user_set_stays(tmp_path):
    environment = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    set_environment(environment, tmp_path, haproxy=False)
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert environment["RAY_AUTH_MODE"] == "token"


def test_free_ports_differ():
    assert len(set(free_ports(5))) == 5


@pytest.mark.skipif(not has_haproxy(), reason="no HAProxy for this platform")
def test_the_wrapper_keeps_haproxy_on_loopback(tmp_path):
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\n"
        "listen stats\n  bind *:8404\n  stats enable\nfrontend prometheus\n  bind :9101\n"
    )
    checked = subprocess.run(
        [write_wrapper(tmp_path), "-c", "-f", config], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert "bind 127.0.0.1:8404" in config.read_text()
    assert "bind 127.0.0.1:9101" in config.read_text()
