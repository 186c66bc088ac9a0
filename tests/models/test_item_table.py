"""Item vectors made of ids and content."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.compress import Quantize, compress
from recsys.compress.export import export_onnx
from recsys.compress.low_rank import FactorizeItems
from recsys.models import TransformerConfig, build, load_model, save, without_content
from recsys.models.interface import torch_scorer
from recsys.models.item_table import ItemContent, item_table

NUM_ITEMS, FEATURES, WIDTH = 20, 6, 16
COLD, BARE = 5, 7  # never trained; without features
CONFIG = TransformerConfig(
    width=WIDTH, head_width=8, feed_forward_width=32, max_length=10, content=("text",)
)


@pytest.fixture
def content() -> ItemContent:
    generator = torch.Generator().manual_seed(0)
    features_VF = torch.randn(NUM_ITEMS + 1, FEATURES, generator=generator).half()
    features_VF[[0, BARE]] = 0
    trained_V = torch.ones(NUM_ITEMS + 1, dtype=torch.bool)
    trained_V[[0, COLD]] = False
    return ItemContent(features_VF, trained_V)


@pytest.fixture(params=[None, 4])
def model(request, content):
    torch.manual_seed(0)
    return build(replace(CONFIG, item_rank=request.param), NUM_ITEMS + 1, content).eval()


HISTORIES = [np.array([1, 2, COLD]), np.array([BARE, 3]), np.arange(1, 9)]


def test_an_item_is_its_id_and_its_features_and_a_cold_one_its_features_only(content):
    table = item_table(NUM_ITEMS + 1, WIDTH, None, content, 0.5).eval()
    adapted_VD = content.features_VF.float() @ table.adapter.weight.T
    expected_VD = table.ids.weight + adapted_VD
    expected_VD[COLD] = adapted_VD[COLD]
    torch.testing.assert_close(table.table(), expected_VD)
    torch.testing.assert_close(table.table()[BARE], table.ids.weight[BARE])
    assert not table.table()[0].any()
    items = torch.tensor([[1, COLD, 0], [BARE, 2, 3]])
    torch.testing.assert_close(table(items), expected_VD[items])


def test_training_drops_ids_of_described_items_and_keeps_cold_ones_out_of_the_softmax(content):
    table = item_table(NUM_ITEMS + 1, WIDTH, None, content, 0.5).train()
    torch.manual_seed(0)
    rows_VD = table.table()
    assert not rows_VD[COLD].any()
    torch.testing.assert_close(rows_VD[BARE], table.ids.weight[BARE])
    adapted_VD = content.features_VF.float() @ table.adapter.weight.T
    dropped_V = torch.isclose(rows_VD, adapted_VD).all(dim=-1)
    assert 4 < dropped_V.sum() < 16
    rows_VD.square().sum().backward()
    assert not table.ids.weight.grad[COLD].any()


def test_content_folds_into_a_dense_table_of_the_same_scores(model, tmp_path):
    expected_BV = torch_scorer(model)(HISTORIES)
    plain = without_content(model)
    assert (plain.config.content, plain.config.item_rank) == ((), None)
    np.testing.assert_allclose(torch_scorer(plain)(HISTORIES), expected_BV, atol=1e-5)
    assert without_content(plain) is plain
    parity = export_onnx(model, tmp_path, histories=HISTORIES)
    assert parity["top10_overlap"] == 1
    assert parity["max_score_difference"] < 1e-4


def test_a_model_with_content_can_be_compressed(model):
    recipe = (FactorizeItems(rank=8), Quantize())
    compressed, precision = compress(model, recipe, histories=HISTORIES)
    assert (compressed.config.content, compressed.config.item_rank) == ((), 8)
    assert precision == "int8"


def test_save_and_load(model, tmp_path):
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [None, *map(str, range(NUM_ITEMS))]}), items)
    save(model, tmp_path / "model", items=items, role="teacher")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    np.testing.assert_array_equal(torch_scorer(loaded)(HISTORIES), torch_scorer(model)(HISTORIES))
