import numpy as np
import pytest
import torch

from recsys.evaluate.cost import hardware, latency_ms, size_bytes, versions


class Recorder:
    """Answers like an engine, and notes what it was asked."""

    threads = 3

    def __init__(self):
        self.batches = []

    def top_k(self, histories, k):
        self.batches.append([len(history) for history in histories])
        assert k == 10


def test_size_is_that_of_the_graph_and_what_lies_beside_it(tmp_path):
    for name, size in (
        ("model.onnx", 100),
        ("model.onnx.data", 1000),
        ("model.safetensors", 5000),
        ("items.parquet", 7000),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    assert size_bytes(tmp_path) == 1100


def test_size_without_a_graph_is_that_of_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(5000))
    assert size_bytes(tmp_path) == 5000


def test_size_of_nothing_is_an_error(tmp_path):
    with pytest.raises(OSError, match=r"model\.safetensors"):
        size_bytes(tmp_path)


def test_latency_asks_the_histories_in_turn_after_a_warm_up():
    model = Recorder()
    histories = [np.arange(length) for length in (1, 2, 3)]
    latency = latency_ms(model, histories, batch_sizes=(1, 2), num_calls=4, warm_up=2)  # type: ignore
    assert model.batches[:6] == [[1], [2], [3], [1], [2], [3]]
    assert model.batches[6:] == [[1, 2], [3, 1], [2, 3]] * 2
    assert latency.keys() == {"engine", "threads", "batch_1", "batch_2"}
    assert latency["threads"] == 3
    assert 0 <= latency["batch_1"]["p50"] <= latency["batch_1"]["p99"]


def test_machine_and_versions_are_named():
    machine = hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] >= 1
    capability = torch.backends.cpu.get_cpu_capability()
    assert ("avx512f" in machine["instructions"]) == ("AVX512" in capability)
    assert {"python", "onnxruntime", "torch"} <= versions().keys()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr("recsys.evaluate.cost.PACKAGES", ("numpy", "no-such-package"))
    assert versions().keys() == {"python", "numpy"}
