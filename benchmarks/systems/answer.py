"""One engine that answers: `python -m benchmarks.systems.answer QUESTION`, a `Question` as JSON.

A process of its own, so that start and memory are the engine's: only what it needs is imported. The
last line that it prints is an `Answer`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.config import from_json, to_json
from recsys.data.batches import pad_histories

Histories = Sequence[np.ndarray]
Call = Callable[[Histories], np.ndarray]
"""From histories to the best items_BK, none of them seen."""
CONFIG, WEIGHTS = "model.json", "model.safetensors"
LIST_LENGTH = 10
WARM_UP = 5


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of an engine."""

    engine: str
    """Its name in `ENGINES`."""
    model: Path
    """What it loads: of ONNX Runtime a graph, of the compilers their file, of PyTorch a directory
    with config and weights."""
    threads: int
    """Threads it may use."""
    batch_sizes: tuple[int, ...]
    """Histories in a call."""
    max_length: int
    """Longest history; shorter ones are as likely."""
    num_items: int
    """Items there are."""
    seconds: float = 1.5
    """For how long calls of each size are repeated, and at least 30 times."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was measured."""

    load_seconds: float
    """From the first import to the first answer."""
    memory_mib: float
    """The largest resident set of the process."""
    milliseconds: dict[str, tuple[float, float]]
    """p50 and p99 of a call, by batch size."""
    best: list[list[int]]
    """The lists for a few histories, for comparison."""


def onnxruntime(question: Question) -> Call:
    from recsys.evaluate.engine import OnnxModel

    model = OnnxModel(question.model, question.threads)

    return lambda histories: model.top_k(histories, LIST_LENGTH)[0]


def openvino(question: Question, precision: str = "f32") -> Call:
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": question.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = ov.Core().compile_model(question.model, "CPU", settings)

    return lambda histories: compiled(list(pad_histories(histories, question.max_length)))[0]


def openvino_bf16(question: Question) -> Call:
    return openvino(question, "bf16")


def eager(question: Question) -> Call:
    return _torch_call(question, recommender(question.model))


def compiled(question: Question) -> Call:
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True  # or compiling brings little
    return _torch_call(question, torch.compile(recommender(question.model), dynamic=True))


def aot_inductor(question: Question) -> Call:
    import torch._inductor

    return _torch_call(question, torch._inductor.aoti_load_package(str(question.model)))


def _torch_call(question: Question, run: Callable[..., Any]) -> Call:
    import torch

    torch.set_num_threads(question.threads)

    @torch.inference_mode()
    def call(histories: Histories) -> np.ndarray:
        padded = pad_histories(histories, question.max_length)
        return run(*map(torch.from_numpy, padded)).numpy()

    return call


def recommender(directory: Path) -> Any:
    """Returns a module from histories to the best new items."""
    import torch
    from safetensors.torch import load_file

    from recsys.files import read_json
    from recsys.models import TransformerConfig, build, num_rows

    config = from_json(TransformerConfig, read_json(directory / CONFIG))
    weights = load_file(directory / WEIGHTS)

    class Recommender(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build(config, num_rows(weights))
            self.model.load_state_dict(weights)

        def forward(self, history_BL: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
            scores_BV = self.model.last_state(history_BL, length_B) @ self.model.item_table().T
            unseen_BV = scores_BV.scatter(1, history_BL, -torch.inf)
            return (
                unseen_BV.index_fill(1, torch.zeros_like(length_B[:1]), -torch.inf)
                .topk(LIST_LENGTH)
                .indices
            )

    return Recommender().eval()


ENGINES: dict[str, Callable[[Question], Call]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-bf16": openvino_bf16,
    "aot-inductor": aot_inductor,
    "compiled": compiled,
    "eager": eager,
}


def answer(question: Question) -> Answer:
    """Loads the engine and measures it."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, question.max_length + 1, 256)
    histories = [draw.integers(1, question.num_items + 1, length) for length in lengths]
    batches = {size: [histories[i : i + size] for i in range(64)] for size in question.batch_sizes}
    started = time.perf_counter()
    call = ENGINES[question.engine](question)
    call(histories[:1])
    load_seconds = time.perf_counter() - started
    milliseconds = {str(size): _time(call, calls, question) for size, calls in batches.items()}
    return Answer(
        load_seconds=load_seconds,
        memory_mib=_peak_memory_mib(),
        milliseconds=milliseconds,
        best=call(histories[:32]).tolist(),
    )


def _peak_memory_mib() -> float:
    """Returns the largest resident set since the program started; getrusage has its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def _time(call: Call, calls: Sequence[Histories], question: Question) -> tuple[float, float]:
    for histories in calls[:WARM_UP]:
        call(histories)
    seconds: list[float] = []
    while len(seconds) < 30 or sum(seconds) < question.seconds:
        histories = calls[len(seconds) % len(calls)]
        started = time.perf_counter()
        call(histories)
        seconds.append(time.perf_counter() - started)
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return float(p50), float(p99)


if __name__ == "__main__":
    print(json.dumps(to_json(answer(from_json(Question, json.loads(sys.argv[1]))))))
