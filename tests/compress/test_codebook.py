"""Codes of items: what they stand for, and what recovery may change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.compress import Quantize
from recsys.compress.codebook import CodebookItems, codebook_items, kmeans
from recsys.compress.recover import recovery
from recsys.models import GRUConfig, TransformerConfig, build
from recsys.models.interface import torch_scorer
from recsys.train.config import TrainConfig
from recsys.train.objective import next_item

NUM_ITEMS = 400
CONFIG = TransformerConfig(width=16, num_layers=1, head_width=8, max_length=10)
HISTORIES = [np.array([3, 1, 2]), np.array([400])]


def make(config=CONFIG):
    torch.manual_seed(0)
    return build(config, NUM_ITEMS + 1).eval()


def test_a_table_of_few_distinct_parts_is_kept_exactly():
    model = make()
    parts = torch.randn(30, 4)
    choice = torch.randint(30, (NUM_ITEMS + 1, 4))
    with torch.no_grad():
        model.item_embedding.weight.copy_(parts[choice].flatten(1))
        model.item_embedding.weight[0] = 0
    coded = codebook_items(CodebookItems(codes=4), model, [])
    assert torch.equal(coded.item_table(), model.item_table())
    assert coded.item_embedding.codes_VP.shape == (NUM_ITEMS + 1, 4)
    np.testing.assert_array_equal(torch_scorer(coded)(HISTORIES), torch_scorer(model)(HISTORIES))


def test_kmeans_finds_clusters_by_hand():
    vectors = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 3.0]])
    weights = torch.tensor([1.0, 1.0, 1.0, 2.0])
    centroids, nearest = kmeans(vectors, weights, 2, torch.Generator().manual_seed(0))
    assert nearest[0] == nearest[1] != nearest[2] == nearest[3]
    torch.testing.assert_close(centroids[nearest[[0, 3]]], torch.tensor([[0.0, 1.0], [9.0, 2.0]]))


def test_no_vector_is_nearer_to_another_centroid():
    vectors = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    centroids, nearest = kmeans(vectors, torch.ones(500), 20, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cdist(vectors, centroids).argmin(dim=1), nearest)
    assert (vectors - centroids[nearest]).square().sum() < 0.2 * vectors.square().sum()


def test_popular_items_are_kept_best():
    model = make()
    histories = [np.full(10_000, item) for item in (3, 4)]

    coded = codebook_items(CodebookItems(codes=2), model, histories)
    error_V = (coded.item_table() - model.item_table()).norm(dim=1)
    assert error_V[[3, 4]].max() < 1e-3 < error_V[1:].mean()
    assert error_V[0] == 0


@pytest.mark.parametrize("config", [CONFIG, GRUConfig(width=16, max_length=10, item_rank=8)])
def test_vectors_learn_and_codes_stay(config):
    coded = codebook_items(CodebookItems(codes=4), make(config), [])
    assert (coded.config.item_rank, coded.config.item_codes) == (None, 4)
    table = coded.item_embedding
    before = {name: weight.clone() for name, weight in coded.state_dict().items()}
    coded.item_table().square().sum().backward()
    optimizer = torch.optim.SGD(coded.parameters(), lr=0.1)
    optimizer.step()
    assert torch.equal(table.codes_VP, before["item_embedding.codes_VP"])
    used = torch.stack([row.bincount(minlength=256) > 0 for row in table.codes_VP[1:].long().T])
    moved = (table.centroids_PCS != before["item_embedding.centroids_PCS"]).any(dim=-1)
    assert torch.equal(moved, used)
    assert not coded.item_table()[0].any()


def test_recovery_moves_vectors_and_codes(dataset_directory, tmp_path):
    torch.manual_seed(0)
    coded = build(replace(CONFIG, item_codes=4), 25).eval()
    step = CodebookItems(codes=4, recover_epochs=1)
    train = TrainConfig(epochs=2, batch_rows=4, learning_rate=1e-2, num_threads=1)
    recovered = recovery(dataset_directory, next_item, train, tmp_path)(coded, step, None)
    before, after = coded.state_dict(), recovered.state_dict()
    codes, vectors = "item_embedding.codes_VP", "item_embedding.centroids_PCS"
    assert list(after) == list(before)
    assert after[codes].dtype == torch.uint8
    assert not torch.equal(after[codes], before[codes])
    assert not torch.equal(after[vectors], before[vectors])


def test_recovery_with_rounded_weights_leaves_whole_ones_that_have_moved(
    dataset_directory, tmp_path
):
    torch.manual_seed(0)
    model = build(CONFIG, 25).eval()
    train = TrainConfig(epochs=2, batch_rows=4, learning_rate=1e-2, num_threads=1)
    step = Quantize(bits=4, recover_epochs=1)
    recovered = recovery(dataset_directory, next_item, train, tmp_path)(model, step, 4)
    before, after = model.state_dict(), recovered.state_dict()
    assert list(after) == list(before)
    assert all(not torch.equal(after[name], before[name]) for name in before if "norm" not in name)
    checkpoint = torch.load(next(tmp_path.glob("*/checkpoint.pt")), weights_only=True)
    assert "item_embedding.parametrizations.weight.original" in checkpoint["best"]


def test_what_cannot_be_coded_is_refused():
    with pytest.raises(ValueError, match="does not divide the width of 16: ask for one of 1, 2, 4"):
        codebook_items(CodebookItems(codes=3), make(), [])
    with pytest.raises(ValueError, match="has 201 rows, no more than the 256 vectors"):
        codebook_items(CodebookItems(codes=4), build(CONFIG, 201), [])
