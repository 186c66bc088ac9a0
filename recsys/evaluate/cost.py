"""What a model costs: bytes that the server loads, milliseconds of the engine that answers."""

import contextlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.checkpoint import GRAPH, WEIGHTS
from recsys.evaluate.engine import OnnxModel

LIST_LENGTH = 10
PACKAGES = ("torch", "onnxruntime", "numba", "numpy", "pyarrow", "ray")
INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimddp", "i8mm", "bf16"),
)
"""What the speed of products depends on, as Linux names it: processors of one name differ."""


def size_bytes(directory: Path) -> int:
    """Returns the bytes of every weight and graph file that the server loads."""
    graph = directory / GRAPH
    if graph.exists():
        return sum(path.stat().st_size for path in directory.glob(f"{GRAPH}*"))
    return (directory / WEIGHTS).stat().st_size


def latency_ms(
    model: OnnxModel,
    histories: Sequence[np.ndarray],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    num_calls: int = 200,
    warm_up: int = 10,
) -> dict[str, Any]:
    """Returns p50 and p99 of one call, history in and top 10 out, for each batch size."""
    result: dict[str, Any] = {"engine": "onnxruntime", "threads": model.threads}
    for size in batch_sizes:
        seconds = [_time_call(model, histories, call, size) for call in range(num_calls + warm_up)]
        p50, p99 = np.quantile(seconds[warm_up:], [0.5, 0.99]) * 1000
        result[f"batch_{size}"] = {"p50": round(float(p50), 4), "p99": round(float(p99), 4)}
    return result


def _time_call(model: OnnxModel, histories: Sequence[np.ndarray], call: int, size: int) -> float:
    batch = [histories[(call * size + i) % len(histories)] for i in range(size)]
    started = time.perf_counter()
    model.top_k(batch, LIST_LENGTH)
    return time.perf_counter() - started


def hardware() -> dict[str, Any]:
    """Returns processor, cores and memory of this machine, and which of `INSTRUCTIONS` it has, as
    far as Linux tells; and its GPUs, where this process has PyTorch to use them."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    present = _cpuinfo("flags", "Features").split()
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in present],
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        **({"gpus": gpus} if (gpus := _gpus()) else {}),
    }


def _gpus() -> list[str]:
    """Returns the names of the GPUs; none to a process that has not imported PyTorch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _cpuinfo(*keys: str) -> str:
    """Returns what Linux says of the first processor under any of `keys`; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that the numbers depend on, as far as they
    are installed: a process of its own trains without Ray."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
