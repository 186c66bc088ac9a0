"""How a model directory is served."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recsys.config import from_json
from recsys.serve.schema import Limits


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a model directory is served; the `args` of an application in cluster/serve.yaml."""

    model_directory: str
    """The model directory."""
    min_replicas: int = 1
    """Replicas kept when there are no requests."""
    max_replicas: int = 2
    """Replicas at most."""
    target_ongoing_requests: int = 16
    """Requests in a replica above which another replica is started."""
    max_ongoing_requests: int = 256
    """Requests that a replica takes at once; of these it makes its batches."""
    max_queued_requests: int = 256
    """Requests that wait for a replica; further ones are answered 503."""
    threads: int = 1
    """Threads of the engine in each replica."""
    batch_size: int = 64
    """Requests, of any callers, that go to the model together."""
    batch_wait_s: float = 0.0
    """How long a batch waits to fill. At 0 it is what came in while the one before was computed."""
    limits: Limits = field(default_factory=Limits)
    """What one request may ask for."""

    def __post_init__(self) -> None:
        if not isinstance(self.model_directory, str):
            raise ValueError(f"model_directory must be text, not {self.model_directory!r}")
        if not isinstance(self.batch_wait_s, int | float) or self.batch_wait_s < 0:
            raise ValueError(f"batch_wait_s must be 0 or more seconds, not {self.batch_wait_s!r}")
        if not isinstance(self.limits, Limits):
            raise ValueError(f"limits must be a mapping of Limits' fields, not {self.limits!r}")
        not_counts = {"model_directory", "batch_wait_s", "limits"}
        for name, value in vars(self).items():
            if name not in not_counts and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} > max_replicas {self.max_replicas}")


def parse_config(args: Mapping[str, Any]) -> ServeConfig:
    """Returns the config that `args`, a mapping read from a file, states.

    Raises:
        ValueError: an unknown or wrong setting.
    """
    values = dict(args)
    if "model_directory" not in values:
        raise ValueError("args need model_directory, the model directory to serve")
    if isinstance(values.get("limits"), Mapping):
        values["limits"] = {"kind": "Limits", **values["limits"]}
    return from_json(ServeConfig, {"kind": "ServeConfig", **values})
