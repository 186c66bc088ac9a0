"""Which engine answers fastest: `python -m benchmarks.engines`.

From histories to the ten best new items, end to end, of a transformer with random weights over
catalogues of four sizes; `--model small` is one as small as students of large catalogues are. Each
engine loads in a process of its own (`benchmarks.systems.answer`). PyTorch's engines and OpenVINO
have the same fp32 weights as ONNX Runtime, whose lists theirs are compared with; OpenVINO is from
PyPI, in the environment of this process. ONNX Runtime's own quantisers stand beside ours, which
leave activations in fp32. Rows go to benchmarks/results/engines.json; `--readme`
writes the table between the markers `engines` of the README.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from benchmarks.command import command
from benchmarks.rows import ROOT, Results, Row, Subject, table
from benchmarks.systems.answer import CONFIG, WEIGHTS, Answer, Question, recommender
from benchmarks.variants import RUNS
from recsys.checkpoint import GRAPH
from recsys.compress.graph import Precision, serving_graph
from recsys.config import from_json, to_json
from recsys.files import read_json, write_json
from recsys.models import TransformerConfig, build

BENCHMARK = "engines"
Model = Literal["medium", "small", "small-of-codes"]
MEDIUM = TransformerConfig(
    width=64, num_layers=2, num_heads=4, head_width=16, feed_forward_width=128, max_length=50
)
SMALL = replace(MEDIUM, width=32, num_layers=1, num_heads=1, head_width=32, feed_forward_width=64)
MODELS: dict[Model, TransformerConfig] = {
    "medium": MEDIUM,
    "small": SMALL,
    "small-of-codes": replace(SMALL, item_codes=8),
}
Own = Literal["dynamic-int8", "static-int8"]
"""Activations in eight bits, too: by what each batch holds, or by what a sample of them held."""
CONTENDERS: dict[str, tuple[str, Precision | Own]] = {
    "ONNX Runtime, fp32": ("onnxruntime", "float32"),
    "ONNX Runtime, int8": ("onnxruntime", "int8"),
    "ONNX Runtime, int4": ("onnxruntime", "int4"),
    "ONNX Runtime's dynamic int8": ("onnxruntime", "dynamic-int8"),
    "ONNX Runtime's static int8": ("onnxruntime", "static-int8"),
    "OpenVINO, fp32": ("openvino", "float32"),
    "OpenVINO, bf16": ("openvino-bf16", "float32"),
    "AOTInductor, fp32": ("aot-inductor", "float32"),
    "torch.compile, fp32": ("compiled", "float32"),
    "PyTorch, fp32": ("eager", "float32"),
}
REFERENCE = "ONNX Runtime, fp32"
CALIBRATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    num_items: tuple[int, ...] = (3_416, 50_000, 125_318, 1_000_000)
    """Sizes of the catalogue."""
    model: Model = "medium"
    """Width 64 and two layers, or 32 and one; that also with eight codes an item."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of an engine."""
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    """Histories in a call."""
    only: tuple[str, ...] = tuple(CONTENDERS)
    """Engines, by the names they have here."""
    again: bool = False
    """Whether what has been measured is measured anew."""
    readme: bool = False
    """Whether the README gets the table of what is measured, and nothing is measured."""

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(CONTENDERS)
        if unknown:
            raise ValueError(f"no engine {', '.join(sorted(unknown))}; known: {list(CONTENDERS)}")


def measure(results: Results, options: Options) -> None:
    """Measures what is not measured yet."""
    for num_items in options.num_items:
        measure_catalogue(results, options, num_items)


def measure_catalogue(results: Results, options: Options, num_items: int) -> None:
    """Measures the engines over one catalogue; they take turns for each number of threads."""
    reference: Answer | None = None
    for threads in options.threads:
        for name in options.only:
            engine, precision = CONTENDERS[name]
            variant = f"{threads} threads"
            line = f"python -m benchmarks.engines --num-items {num_items} --threads {threads}"
            if options.model != "medium":
                variant += f", {options.model} model"
                line += f" --model {options.model}"
            subject = Subject(f"{num_items:,} random items", name, variant, 0)
            if results.has(subject, line) and not options.again and name != REFERENCE:
                continue
            directory = model_directory(num_items, options.model)
            question = Question(
                engine=engine,
                model=loadable(directory, engine, precision),
                threads=threads,
                batch_sizes=options.batch_sizes,
                max_length=MODELS[options.model].max_length,
                num_items=num_items,
            )
            print(f"{num_items:,} items, {threads} threads, {name} ...", file=sys.stderr)
            answer = ask(question)
            reference = answer if name == REFERENCE else reference
            results.put(subject, line, values(answer, reference))


def model_directory(num_items: int, model: Model) -> Path:
    """Returns a directory with config and random weights of a model."""
    directory = RUNS / BENCHMARK / model / str(num_items)
    if not (directory / CONFIG).exists():
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        save_file(build(MODELS[model], num_items + 1).state_dict(), directory / WEIGHTS)
        write_json(directory / CONFIG, to_json(MODELS[model]))
    return directory


def config_of(directory: Path) -> TransformerConfig:
    """Returns the config in a model's directory."""
    return from_json(TransformerConfig, read_json(directory / CONFIG))


def loadable(directory: Path, engine: str, precision: Precision | Own) -> Path:
    """Returns what an engine loads of the model, made where it is missing."""
    match engine:
        case "onnxruntime":
            path = directory / f"{precision}-{GRAPH}"
            if precision == "dynamic-int8" or precision == "static-int8":
                return _made(path, partial(_own_int8, kind=precision))
            return _made(path, partial(_onnx, precision=precision))
        case "openvino" | "openvino-bf16":
            return _made(directory / "model.xml", _openvino)
        case "aot-inductor":
            return _made(directory / "model.pt2", _aot_inductor)
    return directory


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    if not path.exists():
        make(path)
    return path


def _onnx(path: Path, precision: Precision) -> None:
    weights = {name: w.numpy() for name, w in load_file(path.parent / WEIGHTS).items()}
    graph = serving_graph(config_of(path.parent), weights, precision)
    path.write_bytes(graph.SerializeToString())


def _own_int8(path: Path, kind: Own) -> None:
    """Quantises the encoder's products by ONNX Runtime's own tools.

    Scores stay in fp32: some are -inf on purpose, of which the tools make nonsense.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    plain = loadable(path.parent, "onnxruntime", "float32")
    settings: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul"],
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "extra_options": {"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
    }
    if kind == "dynamic-int8":
        quantize_dynamic(plain, path, **settings)
    else:
        quantize_static(plain, path, _calibration(path.parent), **settings)


def _calibration(directory: Path) -> Any:
    """Returns what gives out some batches of random histories."""
    from onnxruntime.quantization import CalibrationDataReader

    max_length = config_of(directory).max_length
    num_rows = len(load_file(directory / WEIGHTS)["item_embedding.weight"])
    draw = np.random.default_rng(1)

    class Histories(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(draw.integers(1, num_rows, (CALIBRATION_BATCHES, 8, max_length)))

        def get_next(self) -> Any:
            for history_BL in self.batches:
                length_B = np.full(len(history_BL), max_length)
                limits = {"k": np.array([10]), "exclude_seen": np.array([True])}
                return {"history_BL": history_BL, "length_B": length_B, **limits}
            return None

    return Histories()


def _openvino(path: Path) -> None:
    # Not from the graph, whose attention is an operator of ONNX Runtime's own.
    import openvino as ov

    model = ov.convert_model(_program(path.parent))
    ov.save_model(model, path, compress_to_fp16=False)


def _aot_inductor(path: Path) -> None:
    import torch._inductor

    torch._inductor.aoti_compile_and_package(
        _program(path.parent), package_path=str(path), inductor_configs={"freezing": True}
    )


def _program(directory: Path) -> torch.export.ExportedProgram:
    """Returns the module from histories to the best items, of any batch size and length."""
    any_size = torch.export.Dim.DYNAMIC
    max_length = config_of(directory).max_length
    length_B = torch.full((4,), max_length)
    history_BL = torch.ones(4, max_length, dtype=torch.int64)
    return torch.export.export(
        recommender(directory),
        (history_BL, length_B),
        dynamic_shapes=({0: any_size, 1: any_size}, {0: any_size}),
        strict=True,
    )


def ask(question: Question) -> Answer:
    """Returns what a process of its own measures.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    outcome = subprocess.run(
        [sys.executable, "-m", "benchmarks.systems.answer", json.dumps(to_json(question))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(question.threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return from_json(Answer, json.loads(outcome.stdout.splitlines()[-1]))


def values(answer: Answer, reference: Answer | None) -> dict[str, tuple[float, str]]:
    """Returns value and unit of what is kept."""
    found = {
        "load_seconds": (answer.load_seconds, "s"),
        "memory_mib": (answer.memory_mib, "MiB"),
    }
    for batch, (p50, p99) in answer.milliseconds.items():
        found |= {f"p50 of {batch}": (p50, "ms"), f"p99 of {batch}": (p99, "ms")}
    if reference is not None:
        pairs = zip(answer.best, reference.best, strict=True)
        shares = [len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in pairs]
        found["overlap"] = (float(np.mean(shares)), "")
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Returns the milliseconds of a call by engine, catalogue and threads."""
    batches = [m for m in dict.fromkeys(row.metric for row in rows) if m.startswith("p50 of ")]
    lines = []
    for dataset, variant, engine in dict.fromkeys(
        (row.dataset, row.variant, row.system) for row in rows
    ):
        of = {
            row.metric: row.value
            for row in rows
            if (row.dataset, row.variant, row.system) == (dataset, variant, engine)
        }
        threads, _, model = variant.partition(" threads")
        lines.append(
            [
                f"{dataset.removesuffix(' random items')}, {threads}, {engine}{model}",
                *(f"{of[batch]:.2f}" if batch in of else "" for batch in batches),
                f"{of['load_seconds']:.1f}",
                f"{of['memory_mib']:,.0f}",
                f"{of['overlap']:.3f}" if "overlap" in of else "",
            ]
        )
    heads = [f"ms, {batch.removeprefix('p50 of ')} at once" for batch in batches]
    head = ["items, threads, engine", *heads, "s to load", "MiB", "same items"]
    return table(head, lines)


if __name__ == "__main__":
    command(BENCHMARK, Options, measure, markdown)
