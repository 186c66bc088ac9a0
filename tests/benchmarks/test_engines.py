import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import engines
from benchmarks.rows import Results, Subject
from benchmarks.systems.answer import ENGINES, WEIGHTS, Answer, Question, answer
from recsys.models import build
from recsys.models.interface import torch_scorer

NUM_ITEMS = 40
ANSWER = Answer(
    load_seconds=0.2,
    memory_mib=70.0,
    milliseconds={"1": (0.5, 0.9)},
    best=[[1, 2], [3, 4]],
)


@pytest.fixture(params=["small", "small-of-codes"])
def directory(request, monkeypatch, tmp_path):
    monkeypatch.setattr(engines, "RUNS", tmp_path)
    return engines.model_directory(NUM_ITEMS, request.param)


def question(directory, engine, precision="float32") -> Question:
    return Question(
        engine=engine,
        model=engines.loadable(directory, engine, precision),
        threads=torch.get_num_threads(),
        batch_sizes=(1, 2),
        max_length=engines.SMALL.max_length,
        num_items=NUM_ITEMS,
        seconds=0.0,
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "eager"])
def test_engines_list_the_best_new_items_of_the_same_model(directory, engine):
    found = answer(question(directory, engine))
    model = build(engines.config_of(directory), NUM_ITEMS + 1)
    model.load_state_dict(load_file(directory / WEIGHTS))
    histories = [np.array([3, 1, 2]), np.array([5])]
    scores_BV = torch_scorer(model)(histories)
    for row, history in zip(scores_BV, histories, strict=True):
        row[[0, *history]] = -np.inf
    call = ENGINES[engine](question(directory, engine))
    expected_BK = np.argsort(-scores_BV, axis=1)[:, :10]
    np.testing.assert_array_equal(call(histories), expected_BK)
    assert set(found.milliseconds) == {"1", "2"}
    assert found.memory_mib > 10


@pytest.mark.parametrize("precision", typing.get_args(engines.Own))
def test_the_engine_s_own_quantisers_list_much_the_same_from_fewer_bytes(
    monkeypatch, tmp_path, precision
):
    monkeypatch.setattr(engines, "RUNS", tmp_path)
    directory = engines.model_directory(NUM_ITEMS, "small")
    asked = question(directory, "onnxruntime", precision)
    plain = question(directory, "onnxruntime")
    assert asked.model.stat().st_size < 0.8 * plain.model.stat().st_size
    found = engines.values(answer(asked), answer(plain))
    assert 0.5 < found["overlap"][0] <= 1


def test_the_table_has_a_line_an_engine(tmp_path):
    results = Results("engines", tmp_path)
    other = replace(ANSWER, best=[[1, 3], [3, 4]])
    for name, seen in ((engines.REFERENCE, ANSWER), ("OpenVINO, fp32", other)):
        subject = Subject("3,416 random items", name, "1 threads", 0)
        results.put(subject, "c", engines.values(seen, ANSWER))
    subject = Subject("3,416 random items", engines.REFERENCE, "2 threads, small model", 0)
    results.put(subject, "c", engines.values(ANSWER, ANSWER))
    head, _, first, second, third = engines.markdown(results.rows()).splitlines()
    assert head == "| items, threads, engine | ms, 1 at once | s to load | MiB | same items |"
    assert first == "| 3,416, 1, ONNX Runtime, fp32 | 0.50 | 0.2 | 70 | 1.000 |"
    assert second == "| 3,416, 1, OpenVINO, fp32 | 0.50 | 0.2 | 70 | 0.750 |"
    assert third == "| 3,416, 2, ONNX Runtime, fp32, small model | 0.50 | 0.2 | 70 | 1.000 |"
