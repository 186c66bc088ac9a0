import numpy as np
import onnx
import pytest
import torch

from recsys.compress.export import export_onnx
from recsys.evaluate.engine import OnnxModel
from recsys.models import TransformerConfig, build
from recsys.models.interface import torch_scorer

NUM_ITEMS = 12
CONFIG = TransformerConfig(
    width=8, num_layers=1, num_heads=1, head_width=8, feed_forward_width=8, max_length=4
)
HISTORIES = [np.array([3, 1]), np.array([1, 2, 3, 4, 5, 6]), np.array([12])]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and the directory that holds its graph."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = build(CONFIG, NUM_ITEMS + 1)
    model.eval()
    export_onnx(model, directory, histories=HISTORIES)
    return model, directory


def test_scores_are_those_of_the_model_it_was_exported_from(exported):
    model, directory = exported
    scores_BV = OnnxModel(directory).scores(HISTORIES)
    np.testing.assert_allclose(scores_BV[:, 1:], torch_scorer(model)(HISTORIES)[:, 1:], atol=1e-5)
    assert np.isneginf(scores_BV[:, 0]).all()


def test_a_graph_of_what_this_engine_has_no_code_for_is_refused_in_one_line(tmp_path):
    kind = onnx.TensorProto.BFLOAT16
    info = [onnx.helper.make_tensor_value_info(name, kind, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Erf", ["x"], ["y"])], "erf", info[:1], info[1:]
    )
    opset = [onnx.helper.make_opsetid("", 21)]
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    with pytest.raises(ValueError, match="is not a graph of a recommender"):
        OnnxModel(path)


def test_a_batch_scores_each_history_as_alone(exported):
    engine = OnnxModel(exported[1])
    alone = np.concatenate([engine.scores([history]) for history in HISTORIES])
    np.testing.assert_allclose(engine.scores(HISTORIES)[:, 1:], alone[:, 1:], atol=1e-5)


def test_only_the_latest_items_of_a_long_history_count(exported):
    engine = OnnxModel(exported[1])
    assert engine.max_length == 4
    long, latest = engine.scores([np.array([9, 8, 1, 2, 3, 4]), np.array([1, 2, 3, 4])])
    np.testing.assert_allclose(long, latest, atol=1e-6)


def test_top_k_is_the_best_of_the_scores(exported):
    engine = OnnxModel(exported[1])
    items_BK, scores_BK = engine.top_k(HISTORIES, 5, exclude_seen=False)
    scores_BV = engine.scores(HISTORIES)
    np.testing.assert_array_equal(items_BK, np.argsort(-scores_BV, axis=1)[:, :5])
    np.testing.assert_allclose(scores_BK, -np.sort(-scores_BV, axis=1)[:, :5])


def test_top_k_leaves_out_what_was_seen(exported):
    items_BK, _ = OnnxModel(exported[1]).top_k([np.array([3, 1])], 10, exclude_seen=True)
    assert sorted(items_BK[0].tolist()) == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_empty_histories_and_batches_do_not_crash(exported):
    engine = OnnxModel(exported[1])
    scores_BV = engine.scores([np.empty(0, np.int64), np.array([1])])
    assert np.isfinite(scores_BV[:, 1:]).all()
    assert engine.scores([]).shape == (0, NUM_ITEMS + 1)


def test_it_opens_a_file_as_a_directory(exported):
    engine = OnnxModel(exported[1] / "model.onnx", threads=2)
    assert (engine.num_items, engine.threads) == (NUM_ITEMS, 2)


def test_a_missing_graph_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model\.onnx does not exist: the model was not exported"):
        OnnxModel(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a graph" * 50])
def test_rubbish_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="is not a graph of a recommender") as error:
        OnnxModel(tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_graph_is_refused(exported, tmp_path):
    content = (exported[1] / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a graph of a recommender"):
        OnnxModel(tmp_path)


def test_a_graph_of_something_else_is_refused(exported, tmp_path):
    graph = onnx.load(exported[1] / "model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="is not a graph of a recommender"):
        OnnxModel(tmp_path)
