"""Item vectors made of ids and content."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.checkpoint import Origin
from recsys.compress import Quantize, compress
from recsys.compress.export import export_onnx
from recsys.compress.low_rank import FactorizeItems
from recsys.models import (
    TransformerConfig,
    build,
    join,
    load_model,
    save,
    without_content,
    without_encoder,
)
from recsys.models.interface import torch_scorer
from recsys.models.item_table import ItemContent, ItemText, item_table

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
    table = item_table(NUM_ITEMS + 1, WIDTH, None, None, content, 0.5).eval()
    adapted_VD = content.features_VF.float() @ table.adapter.weight.T
    expected_VD = table.ids.weight + adapted_VD
    expected_VD[COLD] = adapted_VD[COLD]
    torch.testing.assert_close(table.table(), expected_VD)
    torch.testing.assert_close(table.table()[BARE], table.ids.weight[BARE])
    assert not table.table()[0].any()
    items = torch.tensor([[1, COLD, 0], [BARE, 2, 3]])
    torch.testing.assert_close(table(items), expected_VD[items])


def test_training_drops_ids_of_described_items_and_keeps_cold_ones_out_of_the_softmax(content):
    table = item_table(NUM_ITEMS + 1, WIDTH, None, None, content, 0.5).train()
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
    save(model, tmp_path / "model", items=items, origin=Origin(role="teacher"))
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    np.testing.assert_array_equal(torch_scorer(loaded)(HISTORIES), torch_scorer(model)(HISTORIES))


class Encoder(torch.nn.Module):
    """Tokens to the mean of their vectors, of length 1: an encoder without layers."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Embedding(NUM_ITEMS + 1, FEATURES)
        self.num_read = 0

    def forward(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        self.num_read += len(tokens_NT)
        vectors_NTF = self.vectors(tokens_NT) * (tokens_NT != 0)[..., None]
        return torch.nn.functional.normalize(vectors_NTF.sum(dim=1), dim=-1)


@pytest.fixture
def reading(content) -> torch.nn.Module:
    """A model whose encoder learns; an item's text is its number, that of item BARE is empty."""
    torch.manual_seed(0)
    encoder = Encoder()
    tokens_VT = torch.arange(NUM_ITEMS + 1)[:, None].repeat(1, 2)
    tokens_VT[BARE] = 0
    tokens_VT[:9, 1] = 0
    mean_F = torch.randn(FEATURES) / 10
    features_VF = (encoder(tokens_VT).detach() - mean_F) * tokens_VT.any(dim=1, keepdim=True)
    images_VF = torch.randn(NUM_ITEMS + 1, 2)
    both_VF = torch.cat([features_VF, images_VF], dim=1)
    text = ItemText(encoder, tokens_VT, 0, mean_F)
    config = replace(CONFIG, content=("text", "image"), num_read=8, id_dropout=0.0)
    return build(config, NUM_ITEMS + 1, ItemContent(both_VF, content.trained_V, text))


def test_texts_read_anew_have_the_features_that_stand_and_some_of_them_learn(reading):
    table = reading.item_embedding
    before_VF = table.features_VF.clone()
    table.train()
    table.encoder.num_read = 0
    table(torch.tensor([[1, 2, 3, COLD, 0]]))
    torch.testing.assert_close(table.features(), before_VF)
    assert table.encoder.num_read == 3 + 4  # all that were asked for and are trained, half of 8
    table.table()
    assert table.encoder.num_read == 7  # once a step
    table.features().sum().backward()
    learned_V = table.encoder.vectors.weight.grad.any(dim=1)
    assert learned_V[1:4].all()
    assert learned_V.sum() == 7
    assert not learned_V[[0, COLD, BARE]].any()


def test_the_encoders_gradient_is_that_of_the_whole_catalogue_on_average(reading):
    table = reading.item_embedding
    weight_VF = torch.randn(table.features_VF.shape, generator=torch.Generator().manual_seed(0))
    vectors = table.encoder.vectors.weight

    def gradient() -> torch.Tensor:
        table.train()
        table(torch.arange(1, 10)[None])
        (found_VF,) = torch.autograd.grad((table.features() * weight_VF).sum(), vectors)
        return found_VF

    torch.manual_seed(0)
    mean_VF = sum(gradient() for _ in range(2000)) / 2000
    table.num_read = 2 * NUM_ITEMS  # all of them
    torch.testing.assert_close(
        mean_VF / mean_VF.norm(), gradient() / gradient().norm(), atol=0.05, rtol=0
    )


def test_measuring_reads_all_texts_by_the_encoder_as_it_is(reading, tmp_path):
    table = reading.item_embedding
    before_VF = table.features_VF.clone()
    reading.train()
    with torch.no_grad():
        table.encoder.vectors.weight.normal_()
    reading.eval()
    table.encoder.num_read = 0
    scores_BV = torch_scorer(reading)(HISTORIES)
    assert table.encoder.num_read == NUM_ITEMS - 1
    torch.testing.assert_close(table.features_VF[[0, BARE]], before_VF[[0, BARE]])
    torch.testing.assert_close(table.features_VF[:, FEATURES:], before_VF[:, FEATURES:])
    assert not torch.isclose(table.features_VF, before_VF)[COLD, :FEATURES].any()
    for plain in (without_encoder(reading), without_content(without_encoder(reading))):
        np.testing.assert_allclose(torch_scorer(plain)(HISTORIES), scores_BV, atol=1e-5)
    test_save_and_load(without_encoder(reading), tmp_path)


def test_texts_are_read_only_where_features_of_text_come_first():
    for content, num_read in ((), 8), (("image", "text"), 8), (("text",), 7):
        with pytest.raises(ValueError, match=r"texts to read|num_read must be even"):
            replace(CONFIG, content=content, num_read=num_read)


def test_an_ensemble_keeps_item_vectors_and_not_what_they_are_made_of(model):
    ensemble = join([model, model])
    np.testing.assert_allclose(
        torch_scorer(ensemble)(HISTORIES), torch_scorer(model)(HISTORIES), atol=1e-5
    )
    assert not any("features" in name for name in ensemble.state_dict())
