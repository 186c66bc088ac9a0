"""The serving graph: the same answers as PyTorch, the table once, any batch and length."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf.message import EncodeError

from recsys.compress import export, graph, top_k
from recsys.compress.export import export_onnx
from recsys.compress.quantize import quantize
from recsys.data.batches import pad_histories
from recsys.evaluate.engine import OnnxModel
from recsys.models import build
from recsys.models.gru import GRU, GRUConfig
from recsys.models.interface import torch_scorer
from recsys.models.rounding import block_length, group_length
from recsys.models.transformer import Transformer, TransformerConfig

NUM_ITEMS = 2000
CONFIG = TransformerConfig(
    width=32, num_layers=2, num_heads=2, head_width=16, feed_forward_width=64, max_length=30
)
VARIANTS = {
    "dense": CONFIG,
    "one layer": dataclasses.replace(CONFIG, num_layers=1),
    "low rank": dataclasses.replace(CONFIG, linear_rank=8, item_rank=8),
    "one and three quarters of a block": dataclasses.replace(CONFIG, width=56),
    "narrow heads": dataclasses.replace(CONFIG, num_heads=3, head_width=6),
    "gru": GRUConfig(width=32, hidden_width=24, max_length=30),
    "two layers of gru": GRUConfig(
        width=16, hidden_width=24, num_layers=2, max_length=30, item_rank=8
    ),
    "odd rank": dataclasses.replace(CONFIG, item_rank=5),
    "codes": dataclasses.replace(CONFIG, item_codes=8),
    "gru of codes": GRUConfig(width=24, hidden_width=24, max_length=30, item_codes=4),
}


def make(config: TransformerConfig | GRUConfig) -> Transformer | GRU:
    torch.manual_seed(1)
    model = build(config, NUM_ITEMS + 1)
    assert isinstance(model, Transformer | GRU)
    with torch.no_grad():
        for parameter in model.item_embedding.parameters():
            parameter.mul_(20)
    model.eval()
    return model


@pytest.fixture(scope="module")
def histories() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, NUM_ITEMS + 1, length, dtype=np.int32) for length in range(45)]


def session(directory: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        directory / "model.onnx", providers=["CPUExecutionProvider"]
    )


def ask(directory: Path, histories, *, k: int = 10, exclude_seen: bool = True):
    history_BL, length_B = pad_histories(histories, CONFIG.max_length)
    inputs = {
        "history_BL": history_BL,
        "length_B": length_B,
        "k": np.array([k]),
        "exclude_seen": np.array([exclude_seen]),
    }
    return session(directory).run(None, inputs)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_float_graph_scores_like_pytorch(config, histories, tmp_path: Path):
    model = make(config)
    parity = export_onnx(model, tmp_path, histories=histories)
    assert parity["top10_overlap"] == 1
    assert parity["max_score_difference"] < 1e-3
    _, _, scores_BV = ask(tmp_path, histories)
    expected_BV = torch_scorer(model)(histories)
    np.testing.assert_allclose(scores_BV[:, 1:], expected_BV[:, 1:], atol=1e-3, rtol=1e-3)
    assert (scores_BV[:, 0] == -np.inf).all()


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize("name", ["codes", "gru of codes"])
def test_a_catalogue_scored_by_its_codes_answers_as_one_whose_rows_are_put_together(
    name, precision, histories, tmp_path: Path, monkeypatch
):
    model = make(VARIANTS[name])
    engines = []
    for place, rows in (("rows", NUM_ITEMS + 2), ("codes", NUM_ITEMS + 1)):
        monkeypatch.setattr(graph, "ROWS_SCORED_BY_CODES", rows)
        (tmp_path / place).mkdir()
        export_onnx(model, tmp_path / place, histories=histories, precision=precision)
        engines.append(OnnxModel(tmp_path / place))
    by_rows, by_codes = engines
    expected_BV = by_rows.scores(histories)
    # The product with rows of few bits rounds the state, too.
    tolerance = (2e-2 if precision in ("int8", "int4") else 1e-4) * np.abs(expected_BV[:, 1:]).max()
    scores_BV = by_codes.scores(histories)
    np.testing.assert_allclose(scores_BV, expected_BV, atol=tolerance)
    for row, history in list(enumerate(histories))[1::7]:
        np.testing.assert_allclose(by_codes.scores([history])[0], scores_BV[row], atol=tolerance)
    for exclude_seen in (True, False):
        items_BK, item_scores_BK = by_codes.top_k(histories, 10, exclude_seen)
        left_BV = scores_BV.copy()
        if exclude_seen:
            np.put_along_axis(left_BV, pad_histories(histories, 30)[0], -np.inf, axis=1)
        np.testing.assert_allclose(item_scores_BK, -np.sort(-left_BV, axis=1)[:, :10], atol=1e-5)
        found_BK = np.take_along_axis(left_BV, items_BK, axis=1)
        np.testing.assert_allclose(found_BK, item_scores_BK, atol=1e-5)
    everything_BK, _ = by_codes.top_k(histories[:2], NUM_ITEMS + 5, exclude_seen=False)
    assert set(everything_BK[0].tolist()) == set(range(1, NUM_ITEMS + 1))
    assert by_codes.top_k(histories, 0)[0].shape == (len(histories), 0)
    assert by_codes.top_k([], 10)[0].shape == (0, 10)
    assert by_codes.scores([]).shape == (0, NUM_ITEMS + 1)
    assert by_codes.scores([np.array([])]).shape == (1, NUM_ITEMS + 1)


def test_codes_of_another_catalogue_are_refused(histories, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(graph, "ROWS_SCORED_BY_CODES", 0)
    export_onnx(make(VARIANTS["codes"]), tmp_path, histories=histories)
    forged = onnx.load(tmp_path / "model.onnx")
    (entry,) = [prop for prop in forged.metadata_props if prop.key == "num_items"]
    entry.value = str(NUM_ITEMS - 1)
    onnx.save(forged, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=f"it has codes of {NUM_ITEMS} items, not of"):
        OnnxModel(tmp_path)


@pytest.mark.parametrize("kind", ["Flatten", "Squeeze", "Shape"])
def test_a_graph_of_codes_whose_answers_have_another_form_is_refused(
    kind, histories, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(graph, "ROWS_SCORED_BY_CODES", 0)
    export_onnx(make(VARIANTS["codes"]), tmp_path, histories=histories)
    forged = onnx.load(tmp_path / "model.onnx").graph
    for node in forged.node:
        node.output[:] = ["real" if name == "partial_BPC" else name for name in node.output]
    forged.node.append(onnx.helper.make_node(kind, ["real"], ["partial_BPC"]))
    outputs = [output for output in forged.output if output.name == "codes_VP"]
    kinds = {"Shape": onnx.TensorProto.INT64}
    value = onnx.helper.make_tensor_value_info("partial_BPC", kinds.get(kind, 1), None)
    del forged.output[:]
    forged.output.extend([value, *outputs])
    whole = onnx.load(tmp_path / "model.onnx")
    whole.graph.CopyFrom(forged)
    onnx.save(whole, tmp_path / "model.onnx")
    with pytest.raises(
        ValueError, match="is not a graph of a recommender: partial scores"
    ) as error:
        OnnxModel(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_an_answer_depends_on_its_own_history_only(precision, config, histories, tmp_path: Path):
    export_onnx(make(config), tmp_path, histories=histories, precision=precision)
    _, _, together_BV = ask(tmp_path, histories)
    for history, expected_V in list(zip(histories, together_BV, strict=True))[::6]:
        _, _, alone_BV = ask(tmp_path, [history])
        tolerance = 1e-4 if precision == "float32" else 2e-2
        largest = np.abs(expected_V[1:]).max()
        np.testing.assert_allclose(alone_BV[0], expected_V, atol=tolerance * largest)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_item_table_is_stored_once(config, histories, tmp_path: Path):
    model = make(config)
    row_length = config.item_codes or config.item_rank or config.width
    table_size = (NUM_ITEMS + 1) * row_length
    rest = sum(weight.numel() for weight in model.state_dict().values()) - table_size
    for precision, bits in (("float32", 32), ("float16", 16), ("int8", 8), ("int4", 4)):
        export_onnx(model, tmp_path, histories=histories, precision=precision)
        size = (tmp_path / "model.onnx").stat().st_size
        row_bytes = row_length if config.item_codes else -(-row_length * bits // 8)
        scales = 4 * NUM_ITEMS if bits < 16 and not config.item_codes else 0
        assert size < row_bytes * (NUM_ITEMS + 1) + scales + rest * max(bits, 8) / 8 + 20_000
        large = [
            tensor
            for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
            if len(tensor.raw_data) >= row_bytes * NUM_ITEMS
            and tensor.dims[0] in (NUM_ITEMS, NUM_ITEMS + 1)
        ]
        assert len(large) == 1


@pytest.mark.parametrize(
    ("precision", "overlap", "difference"),
    [("float16", 0.99, 2e-3), ("int8", 0.9, 0.05), ("int4", 0.7, 0.4)],
)
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_graph_of_few_bits_is_near_pytorch(
    config, precision, overlap, difference, histories, tmp_path: Path
):
    model = make(config)
    parity = export_onnx(model, tmp_path, histories=histories, precision=precision)
    largest = np.abs(torch_scorer(model)(histories)).max()
    assert parity["top10_overlap"] > overlap
    assert 0 < parity["max_score_difference"] < difference * largest


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize(
    "name",
    ["dense", "one and three quarters of a block", "low rank", "odd rank", "narrow heads"],
)
def test_graph_of_few_bits_scores_by_what_its_codes_stand_for(
    name, precision, bits, histories, tmp_path: Path
):
    model = make(VARIANTS[name])
    export_onnx(model, tmp_path, histories=histories, precision=precision)
    _, _, scores_BV = ask(tmp_path, histories)
    state = {name: weight.numpy() for name, weight in model.state_dict().items()}
    for key, weight in state.items():
        is_table = key in ("item_embedding.weight", "item_embedding.codes_VR")
        if weight.ndim == 2:
            rows = weight.T if key.endswith("basis_RD") else weight
            width = rows.shape[1]
            block = block_length(width) if is_table else group_length(width, bits)
            codes, scales = quantize(rows, bits, block)
            rows = codes * np.repeat(scales.astype(np.float32), block, 1)[:, : rows.shape[1]]
            state[key] = rows.T if key.endswith("basis_RD") else rows
    model.load_state_dict({key: torch.from_numpy(weight) for key, weight in state.items()})
    expected_BV = torch_scorer(model)(histories)
    # What is left is that states are rounded to 8 bits.
    largest = np.abs(expected_BV).max()
    np.testing.assert_allclose(scores_BV[:, 1:], expected_BV[:, 1:], atol=0.02 * largest)


@pytest.fixture(params=["all at once", "in groups"])
def catalogue_of_any_size(request, monkeypatch):
    """The best are found both as in a small catalogue and as in a large one."""
    if request.param == "in groups":
        monkeypatch.setattr(top_k, "COLUMNS_TO_GROUP", 0)


@pytest.mark.usefixtures("catalogue_of_any_size")
def test_seen_items_are_left_out_only_if_asked(histories, tmp_path: Path):
    export_onnx(make(CONFIG), tmp_path, histories=histories)
    without_BK, _, scores_BV = ask(tmp_path, histories, k=NUM_ITEMS)
    with_BK, item_scores_BK, raw_BV = ask(tmp_path, histories, k=50, exclude_seen=False)
    np.testing.assert_array_equal(scores_BV, raw_BV)
    np.testing.assert_array_equal(with_BK, np.argsort(-raw_BV, axis=1, kind="stable")[:, :50])
    np.testing.assert_array_equal(item_scores_BK, np.take_along_axis(raw_BV, with_BK, 1))
    ten_BK, _, _ = ask(tmp_path, histories, k=10)
    np.testing.assert_array_equal(ten_BK, without_BK[:, :10])
    assert without_BK.max() <= NUM_ITEMS  # also where the score is -inf
    for items_K, history in zip(without_BK, histories, strict=True):
        num_unseen = NUM_ITEMS - len(np.unique(history[-CONFIG.max_length :]))
        assert not np.isin(items_K[:num_unseen], history[-CONFIG.max_length :]).any()


@pytest.mark.usefixtures("catalogue_of_any_size")
def test_k_beyond_the_catalogue_gives_all_items(histories, tmp_path: Path):
    export_onnx(make(CONFIG), tmp_path, histories=histories)
    items_BK, scores_BK, _ = ask(tmp_path, histories[:2], k=10 * NUM_ITEMS, exclude_seen=False)
    np.testing.assert_array_equal(np.sort(items_BK[0]), np.arange(1, NUM_ITEMS + 1))
    assert np.isfinite(scores_BK).all()


def test_metadata_names_length_and_items(histories, tmp_path: Path):
    export_onnx(make(CONFIG), tmp_path, histories=histories, precision="int8")
    metadata = session(tmp_path).get_modelmeta().custom_metadata_map
    assert metadata == {"max_length": "30", "num_items": "2000", "precision": "int8"}


def test_a_graph_that_disagrees_is_not_written(histories, tmp_path: Path, monkeypatch):
    plain = export.serving_graph

    def tampered(config, weights, precision):
        name = "blocks.1.output.weight"
        return plain(config, {**weights, name: weights[name][::-1]}, precision)

    monkeypatch.setattr(export, "serving_graph", tampered)
    with pytest.raises(ValueError, match="the float32 graph disagrees"):
        export_onnx(make(CONFIG), tmp_path, histories=histories)
    assert not list(tmp_path.iterdir())


def test_a_graph_too_large_for_its_format_is_refused(histories, tmp_path: Path, monkeypatch):
    class Large:
        def SerializeToString(self):
            raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(export, "serving_graph", lambda *_: Large())
    with pytest.raises(ValueError, match="more than the 2 GiB"):
        export_onnx(make(CONFIG), tmp_path, histories=histories)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(histories, tmp_path: Path):
    model = make(CONFIG)
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="disagrees"):
        export_onnx(model, tmp_path, histories=histories, precision="int8")


def test_one_score_that_is_no_number_is_refused(histories, tmp_path: Path, monkeypatch):
    """Of an item that is in no list, too."""
    scores = OnnxModel.scores

    def broken(self, histories, times=None):
        scores_BV = scores(self, histories)
        scores_BV[np.arange(len(scores_BV)), scores_BV[:, 1:].argmin(axis=1) + 1] = np.nan
        return scores_BV

    monkeypatch.setattr(OnnxModel, "scores", broken)
    with pytest.raises(ValueError, match="disagrees"):
        export_onnx(make(CONFIG), tmp_path, histories=histories)


def test_export_without_histories_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one history"):
        export_onnx(make(CONFIG), tmp_path, histories=[])
