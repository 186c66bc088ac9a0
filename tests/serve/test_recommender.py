import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.checkpoint import seal_model
from recsys.serve.recommender import Recommender
from recsys.serve.schema import Request

write_model = runpy.run_path(str(Path(__file__).with_name("tiny_model.py")))["write_model"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Recommender:
    return Recommender(write_model(tmp_path_factory.mktemp("model") / "tiny"))


def ids(recommendation) -> str:
    return "".join(item["item_id"] for item in recommendation["items"])


def test_items_are_ranked_and_scored(model):
    (answer,) = model.recommend([["a", "b"]], k=3, exclude_seen=True)
    assert answer == {
        "items": [
            {"item_id": "f", "score": 26.0},
            {"item_id": "e", "score": 25.0},
            {"item_id": "d", "score": 24.0},
        ],
        "unknown_items": [],
        "popular": False,
    }


@pytest.mark.parametrize(
    ("history", "exclude_seen", "expected"),
    [
        ("f", True, "edcba"),
        ("f", False, "fedcba"),
        ("fe", True, "dcba"),
        ("fedc", True, "ba"),
        ("fdca", False, "fedcba"),
        ("fedcba", True, ""),
    ],
)
def test_seen_items_are_left_out_also_before_the_model_s_window(
    model, history, exclude_seen, expected
):
    (answer,) = model.recommend([list(history)], k=6, exclude_seen=exclude_seen)
    assert ids(answer) == expected


def test_unknown_items_are_ignored_and_named_once(model):
    known, mixed = model.recommend([["a"], ["x", "a", "y", "x"]], k=2)
    assert mixed["unknown_items"] == ["x", "y"]
    assert mixed["items"] == known["items"]


@pytest.mark.parametrize("history", [[], ["x", "y"]])
def test_nothing_known_gets_the_popular_items(model, history):
    (answer,) = model.recommend([history], k=2)
    assert answer == {
        "items": [{"item_id": "a", "score": 6.0}, {"item_id": "b", "score": 5.0}],
        "unknown_items": history,
        "popular": True,
    }


def test_padding_is_no_item(model):
    assert len(model.recommend([["a"]], k=6, exclude_seen=False)[0]["items"]) == 6
    (answer,) = model.recommend([[""]], k=1)
    assert answer["unknown_items"] == [""]


def test_requests_answered_together_get_what_they_get_alone(model):
    requests = [
        Request(histories=(("a",), ()), k=1, exclude_seen=True),
        Request(histories=(("b", "f"),), k=6, exclude_seen=False),
        Request(histories=(("f",), ("x", "e")), k=4, exclude_seen=True),
    ]
    assert model.answer(requests) == [
        model.recommend(r.histories, k=r.k, exclude_seen=r.exclude_seen) for r in requests
    ]


def test_many_histories_are_cut_into_calls(model, monkeypatch):
    together = model.recommend([["a"], ["b"], [], ["c"]], k=3)
    monkeypatch.setattr("recsys.serve.recommender.MAX_ROWS_PER_CALL", 1)
    assert model.recommend([["a"], ["b"], [], ["c"]], k=3) == together


def test_version_depends_on_the_files_alone(tmp_path, model):
    same = Recommender(write_model(tmp_path / "same"))
    other = Recommender(write_model(tmp_path / "other", sign=-1))
    assert same.version == model.version != other.version
    assert ids(other.recommend([["a"]], k=5)[0]) == "bcdef"


def test_report_is_carried(tmp_path, model):
    directory = write_model(tmp_path / "model")
    (directory / "report.json").write_text(json.dumps({"ndcg@10": 0.5}))
    assert Recommender(directory).report == {"ndcg@10": 0.5}
    assert model.report is None


def test_a_flipped_byte_is_refused(tmp_path):
    directory = write_model(tmp_path / "model")
    graph = directory / "model.onnx"
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 1
    graph.write_bytes(raw)
    with pytest.raises(ValueError, match=r"model\.onnx is damaged"):
        Recommender(directory)


def test_a_model_without_serving_form_is_refused(tmp_path):
    directory = write_model(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    del config["files"]["model.onnx"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cannot be served: it has no model\.onnx"):
        Recommender(directory)


def test_items_without_popularity_are_refused(tmp_path):
    directory = write_model(tmp_path / "model")
    pq.write_table(pa.table({"item_id": pa.array([None, "a"])}), directory / "items.parquet")
    seal_model(directory)
    with pytest.raises(ValueError, match="has no column popularity"):
        Recommender(directory)


def test_items_of_another_catalogue_are_refused(tmp_path):
    directory = write_model(tmp_path / "model")
    table = pq.read_table(directory / "items.parquet")
    pq.write_table(table.slice(0, 4), directory / "items.parquet")
    seal_model(directory)
    with pytest.raises(ValueError, match=r"model\.onnx has 6 items, items\.parquet 3"):
        Recommender(directory)


def test_serving_needs_neither_torch_nor_ray():
    code = "import recsys.serve.recommender, sys; print({'torch', 'ray'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_scores_are_plain_numbers(model):
    (answer,) = model.recommend([["a"]], k=1)
    assert type(answer["items"][0]["score"]) is float
    assert np.isfinite(answer["items"][0]["score"])


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_exported_transformer_recommends_what_pytorch_ranks(tmp_path, precision):
    import torch

    from recsys.compress.export import export_onnx
    from recsys.models import TransformerConfig, build, save
    from recsys.models.interface import torch_scorer

    torch.manual_seed(0)
    config = TransformerConfig(
        width=16, num_layers=1, num_heads=2, head_width=8, feed_forward_width=32, max_length=5
    )
    network = build(config, 41).eval()
    items = tmp_path / "items.parquet"
    ids = [None, *(f"film {i}" for i in range(1, 41))]
    pq.write_table(pa.table({"item_id": ids, "popularity": [0, *range(40)]}), items)
    save(network, tmp_path / "model", items=items, role="student")
    histories = [np.array([3, 1, 2]), np.array([40, 7, 7, 9, 20, 11, 12])]
    export_onnx(network, tmp_path / "model", histories=histories, precision=precision)
    seal_model(tmp_path / "model")

    asked = [[f"film {i}" for i in history] for history in histories]
    answers = Recommender(tmp_path / "model").recommend(asked, k=3, exclude_seen=True)

    for history, answer, scores_V in zip(
        histories, answers, torch_scorer(network)(histories), strict=True
    ):
        scores_V[np.append(history, 0)] = -np.inf
        best = [f"film {i}" for i in np.argsort(-scores_V)[: 1 if precision == "int8" else 3]]
        assert [item["item_id"] for item in answer["items"]][: len(best)] == best
