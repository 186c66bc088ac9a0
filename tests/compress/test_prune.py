"""Which parts stay, and how the weights that read them are refitted."""

import numpy as np
import pytest
import torch

from recsys.compress.prune import (
    PruneFeedForward,
    PruneHeads,
    PruneLayers,
    prune_feed_forward,
    prune_heads,
    prune_layers,
)
from recsys.models.interface import torch_scorer
from recsys.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(
    width=16, num_layers=3, num_heads=4, head_width=4, feed_forward_width=24, max_length=12
)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG, 60)
    model.eval()
    return model


@pytest.fixture
def histories() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 60, length, dtype=np.int32) for length in range(1, 30)]


def silence(weight: torch.Tensor, columns) -> None:
    with torch.no_grad():
        weight[:, columns] = 0


def assert_same_answers(smaller: Transformer, model: Transformer, histories) -> None:
    expected, actual = torch_scorer(model)(histories), torch_scorer(smaller)(histories)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_layer_that_does_nothing_goes_first(model, histories):
    silence(model.blocks[1].output.weight, slice(None))
    silence(model.blocks[1].contract.weight, slice(None))
    smaller = prune_layers(PruneLayers(keep=2), model, histories)
    assert torch.equal(smaller.blocks[1].query.weight, model.blocks[2].query.weight)
    assert_same_answers(smaller, model, histories)


def test_heads_that_add_nothing_go_first(model, histories):
    for layer, head in enumerate((2, 0, 3)):
        silence(model.blocks[layer].output.weight, slice(4 * head, 4 * head + 4))
    smaller = prune_heads(PruneHeads(keep=3), model, histories)
    assert smaller.blocks[0].query.weight.shape == (12, 16)
    assert torch.equal(smaller.blocks[1].key.weight, model.blocks[1].key.weight[4:])
    assert_same_answers(smaller, model, histories)


def test_units_that_add_nothing_go_first(model, histories):
    for block in model.blocks:
        silence(block.contract.weight, [0, 5, 23])
    smaller = prune_feed_forward(PruneFeedForward(keep=21), model, histories)
    assert_same_answers(smaller, model, histories)


def test_a_copied_unit_is_made_up_for_by_its_twin(model, histories):
    with torch.no_grad():
        for block in model.blocks:
            block.expand.weight[7] = block.expand.weight[3]
            # The least of all units, so that it goes, and yet not nothing.
            block.contract.weight[:, 7] *= 1e-3
    smaller = prune_feed_forward(PruneFeedForward(keep=23), model, histories)
    for small, block in zip(smaller.blocks, model.blocks, strict=True):
        change = small.contract.weight[:, 3] - block.contract.weight[:, 3]
        twin = block.contract.weight[:, 7]
        cosine = torch.cosine_similarity(change, twin, dim=0)
        assert cosine > 0.99
