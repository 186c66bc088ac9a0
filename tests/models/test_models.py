from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.checkpoint import Origin
from recsys.data.batches import pad_histories, pad_times
from recsys.files import read_json, write_json
from recsys.models import (
    EnsembleConfig,
    GRUConfig,
    HSTUConfig,
    TransformerConfig,
    build,
    load_model,
    save,
)
from recsys.models.interface import SequenceModel, torch_scorer
from recsys.models.item_table import DenseItemTable
from recsys.models.layers import Dropout, compile_encoder, not_compiled
from tests.models.rows import pack, times_of

NUM_ITEMS = 20
TRANSFORMER = TransformerConfig(
    width=16, num_heads=2, head_width=8, feed_forward_width=32, max_length=10
)
HSTU = HSTUConfig(width=16, num_heads=2, head_width=8, max_length=10)
GRU = GRUConfig(width=16, hidden_width=12, max_length=10)
CONFIGS = {
    "transformer": TRANSFORMER,
    "one layer": replace(TRANSFORMER, num_layers=1, feed_forward_width=8),
    "low rank": replace(TRANSFORMER, item_rank=4, linear_rank=3),
    "codes": replace(TRANSFORMER, item_codes=4),
    "hstu": HSTU,
    "hstu without time": replace(HSTU, time="none"),
    "hstu with the target's time": replace(HSTU, time="target", item_rank=4),
    "gru": GRU,
    "gru of codes": replace(GRU, item_codes=2),
    "gru of two layers": replace(GRU, num_layers=2, item_rank=4),
    "ensemble": EnsembleConfig(members=(TRANSFORMER, HSTU, replace(GRU, width=8))),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return build(request.param, NUM_ITEMS + 1).eval()


def encode(model, *histories):
    return model.encode(pack(*histories))[0]


def scores(model, histories):
    histories = [np.array(history, dtype=np.int32) for history in histories]
    return torch_scorer(model)(histories, [times_of(history) for history in histories])


def test_is_a_sequence_model(model):
    assert isinstance(model, SequenceModel)


def test_a_position_does_not_see_the_future(model):
    torch.testing.assert_close(encode(model, [1, 2, 3, 4])[:3], encode(model, [1, 2, 3, 9])[:3])


def test_a_position_sees_the_past(model):
    assert not torch.allclose(encode(model, [1, 2, 3])[2], encode(model, [5, 2, 3])[2])
    assert not torch.allclose(encode(model, [1, 2, 3])[2], encode(model, [2, 1, 3])[2])


def test_sequences_of_a_row_do_not_see_each_other(model):
    packed = encode(model, [1, 2, 3], [4, 5])
    torch.testing.assert_close(packed[:3], encode(model, [1, 2, 3]))
    torch.testing.assert_close(packed[3:], encode(model, [4, 5]))


def test_last_state_is_the_packed_state_and_ignores_padding(model):
    padded = pad_histories([np.array([1, 2, 3]), np.array([4])], 10)
    times_BM = pad_times([times_of([1, 2, 3]), times_of([4])], 10)
    state_BD = model.last_state(*map(torch.from_numpy, (*padded, times_BM)))
    torch.testing.assert_close(state_BD[0], encode(model, [1, 2, 3])[-1])
    torch.testing.assert_close(state_BD[1], encode(model, [4])[-1])


def test_longer_histories_count_by_their_latest_items(model):
    score = torch_scorer(model)
    long, times = np.arange(1, 16), np.arange(16) ** 3
    expected = score([long[-10:]], [times[-11:]])
    np.testing.assert_allclose(score([long], [times]), expected, rtol=1e-5)
    assert np.isfinite(score([np.array([], dtype=np.int32)], [np.array([5])])).all()


def test_save_and_load(model, tmp_path):
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [None, *map(str, range(NUM_ITEMS))]}), items)
    save(model, tmp_path / "model", items=items, origin=Origin(role="student"))
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    histories = [[1, 2], [3]]
    np.testing.assert_array_equal(scores(loaded, histories), scores(model, histories))


@pytest.mark.parametrize(
    "wrong",
    [{"width": 99}, {"width": None}, {"dropout": "x"}, {"kind": ["a"]}, {"kind": None}],
)
def test_a_config_that_is_not_of_its_weights_is_refused(model, tmp_path, wrong):
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [None, *map(str, range(NUM_ITEMS))]}), items)
    save(model, tmp_path / "model", items=items, origin=Origin(role="student"))
    config = read_json(tmp_path / "model/config.json")
    config["model"] |= wrong
    if wrong == {"kind": None}:
        del config["model"]["kind"]
    write_json(tmp_path / "model/config.json", config)
    with pytest.raises(ValueError, match=r"config\.json|setting|width|model kind"):
        load_model(tmp_path / "model")


def test_rows_of_the_table_by_themselves(model):
    items = torch.tensor([[3, 1], [7, 20]])
    torch.testing.assert_close(model.item_vectors(items), model.item_table()[items])


def test_an_impossible_shape_is_refused():
    with pytest.raises(ValueError, match="even"):
        TransformerConfig(head_width=7)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    dropout = Dropout(0.3)
    torch.manual_seed(0)
    x = torch.ones(1001, 101)
    dropped = dropout(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    torch.manual_seed(0)
    assert torch.equal(dropout(x), dropped)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_passes_the_gradient_of_what_stays_and_keeps_the_type(dtype):
    x = torch.ones(33, 7, dtype=dtype, requires_grad=True)
    dropped = Dropout(0.5)(x)
    assert dropped.dtype == dtype
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient, dropped)


@pytest.mark.parametrize(
    "setting",
    [
        {"width": 0},
        {"head_width": 0},
        {"feed_forward_width": -1},
        {"item_rank": 0},
        {"linear_rank": -1},
        {"item_codes": 0},
    ],
)
def test_shapes_that_cannot_be_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        TransformerConfig(**setting)


@pytest.mark.parametrize("config", [TransformerConfig, GRUConfig])
def test_codes_that_do_not_fit_are_refused(config):
    with pytest.raises(ValueError, match="item_codes must divide the width of 64, which 5 does"):
        config(width=64, item_codes=5)
    with pytest.raises(ValueError, match="leave item_rank or item_codes out"):
        config(item_rank=4, item_codes=4)


@pytest.mark.parametrize("name", ["transformer", "low rank", "codes", "gru of codes"])
def test_the_padding_is_a_zero_vector(name):
    model = build(CONFIGS[name], NUM_ITEMS + 1)
    assert not model.item_table()[0].any()
    assert not model.item_vectors(torch.tensor([0])).any()


def test_the_encoder_compiles_to_one_graph_with_dropout_in_it():
    graphs = _compile(build(TRANSFORMER, NUM_ITEMS + 1).train(), fullgraph=True)
    assert len(graphs) == 1


def test_a_loop_over_positions_is_not_compiled():
    model = build(CONFIGS["gru of codes"], NUM_ITEMS + 1).eval()
    expected_BLD = model.encode(pack([1, 2, 3], [4, 5]))
    assert not _compile(model)
    torch.testing.assert_close(model.encode(pack([1, 2, 3], [4, 5])), expected_BLD)


def test_a_part_that_is_not_compiled_is_left_out_of_the_rest():
    class Apart(DenseItemTable):
        @not_compiled
        def forward(self, items_BL):
            return super().forward(items_BL)

    model = build(TRANSFORMER, NUM_ITEMS + 1).eval()
    expected_BLD = model.encode(pack([1, 2, 3], [4, 5]))
    model.item_embedding.__class__ = Apart
    graphs = _compile(model)
    operators = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert any("linear" in name for name in operators)
    assert not any("embedding" in name for name in operators)
    torch.testing.assert_close(model.encode(pack([1, 2, 3], [4, 5])), expected_BLD)


def _compile(model, **settings) -> list:
    """Has a model compile and read two sequences, and returns the graphs."""
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    with mock.patch("torch.compile", partial(torch.compile, backend=keep, **settings)):
        compile_encoder(model)
    model.encode(pack([1, 2, 3], [4, 5]))
    return graphs
