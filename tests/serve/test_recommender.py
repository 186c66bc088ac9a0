import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.checkpoint import Origin, seal_model
from recsys.serve import recommender
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


def test_version_depends_on_what_decides_the_answers_alone(tmp_path, model):
    same = Recommender(write_model(tmp_path / "same"))
    other = Recommender(write_model(tmp_path / "other", sign=-1))
    new_only = write_model(tmp_path / "new only")
    set_config(new_only, scores_seen=False)
    assert same.version == model.version != other.version
    assert Recommender(new_only).version != model.version
    assert ids(other.recommend([["a"]], k=5)[0]) == "bcdef"


def test_report_is_carried(tmp_path, model):
    directory = write_model(tmp_path / "model")
    (directory / "report.json").write_text(json.dumps({"ndcg@10": 0.5}))
    assert Recommender(directory).report == {"ndcg@10": 0.5}
    assert model.report is None


def test_a_directory_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    directory = write_model(tmp_path / "model")
    other = write_model(tmp_path / "other", sign=-1)
    load = recommender.OnnxModel

    def replace_and_load(path, threads):
        path.rename(tmp_path / "old")
        other.rename(path)
        return load(path, threads=threads)

    monkeypatch.setattr(recommender, "OnnxModel", replace_and_load)
    with pytest.raises(ValueError, match="was replaced while it was read"):
        Recommender(directory)


def test_a_long_history_makes_no_list_longer_but_its_own(model, monkeypatch):
    made = []
    monkeypatch.setattr(recommender, "Item", lambda **item: made.append(item) or item)
    together = model.recommend([["a"], ["b"], ["a", "b", "c", "d", "e"]], k=1)
    assert len(made) == 3
    assert [len(one["items"]) for one in together] == [1, 1, 1]


def set_config(directory: Path, **changes) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def replace_graph(directory: Path) -> None:
    other = write_model(directory.with_name("other"), sign=-1)
    (directory / "model.onnx").write_bytes((other / "model.onnx").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: flip_a_byte(d / "model.onnx"), r"model\.onnx is damaged"),
        (lambda d: flip_a_byte(d / "model.safetensors"), r"model\.safetensors is damaged"),
        (lambda d: flip_a_byte(d / "items.parquet"), r"items\.parquet is damaged"),
        (lambda d: (d / "model.onnx").unlink(), r"model\.onnx is missing"),
        (lambda d: (d / "items.parquet").unlink(), r"items\.parquet is missing"),
        (lambda d: (d / "config.json").unlink(), r"has no config\.json"),
        (lambda d: (d / "config.json").write_text('{"model":'), "is not valid JSON"),
        (replace_graph, r"model\.onnx is damaged: it differs from what was written"),
        (lambda d: set_config(d, schema_version=99), "has schema version 99"),
        (lambda d: set_config(d, schema_version="1"), "does not describe a model"),
        (lambda d: set_config(d, files=[]), "does not describe a model"),
        (lambda d: set_config(d, model=None), "does not describe a model"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused_in_one_line_and_not_run(
    damage, message, tmp_path, monkeypatch
):
    directory = write_model(tmp_path / "model")
    damage(directory)

    def run(*_arguments, **_options):
        raise AssertionError("the graph was loaded")

    monkeypatch.setattr("recsys.serve.recommender.OnnxModel", run)
    with pytest.raises(ValueError, match=message) as refused:
        Recommender(directory)
    assert len(str(refused.value).splitlines()) == 1


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


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("item_id", [None, 1, 2, 3, 4, 5, 6]),
        ("item_id", [None, "a", "a", "b", "c", "d", "e"]),
        ("item_id", ["z", "a", None, "b", "c", "d", "e"]),
        ("popularity", list("abcdefg")),
    ],
)
def test_a_catalogue_that_is_none_is_refused(tmp_path, column, values):
    directory = write_model(tmp_path / "model")
    table = pq.read_table(directory / "items.parquet")
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    pq.write_table(table, directory / "items.parquet")
    seal_model(directory)
    with pytest.raises(ValueError, match=r"items\.parquet .* make it anew"):
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


def test_every_way_to_store_a_model_answers_without_torch(tmp_path, monkeypatch):
    import torch

    from recsys.compress import CodebookItems, FactorizeItems, Quantize, compress, graph
    from recsys.compress.export import export_onnx
    from recsys.models import GRUConfig, TransformerConfig, build, save

    items = tmp_path / "items.parquet"
    ids = [None, *(f"film {i}" for i in range(1, 301))]
    pq.write_table(pa.table({"item_id": ids, "popularity": [0, *range(300)]}), items)
    config = TransformerConfig(width=16, num_layers=1, head_width=8, max_length=5)
    cases = {
        "float32": (config, ()),
        "fp16": (config, (Quantize(bits=16),)),
        "int8": (config, (FactorizeItems(rank=8), Quantize())),
        "int4": (GRUConfig(width=16, max_length=5), (Quantize(bits=4),)),
        "codes": (config, (CodebookItems(codes=4), Quantize())),
        "many codes": (config, (CodebookItems(codes=4), Quantize())),
    }
    histories = [np.array([3, 1, 2]), np.array([40])]
    for name, (shape, recipe) in cases.items():
        torch.manual_seed(0)
        network, precision = compress(build(shape, 301).eval(), recipe, histories=histories)
        save(network, tmp_path / name, items=items, origin=Origin(role="compressed"))
        if name == "many codes":
            monkeypatch.setattr(graph, "ROWS_SCORED_BY_CODES", 301)
        export_onnx(network, tmp_path / name, histories=histories, precision=precision)
        seal_model(tmp_path / name)
    asked = [[f"film {i}" for i in history] for history in histories]
    code = f"""
import sys
absent = ("torch", "ray", "onnx", "onnxscript", "tqdm")
sys.modules.update(dict.fromkeys(absent))
import json, pathlib
from recsys.serve.recommender import Recommender
root = pathlib.Path({str(tmp_path)!r})
names = {list(cases)!r}
print(json.dumps([Recommender(root / name).recommend({asked!r}, k=5) for name in names]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == [
        Recommender(tmp_path / name).recommend(asked, k=5) for name in cases
    ]


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
    save(network, tmp_path / "model", items=items, origin=Origin(role="student"))
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
