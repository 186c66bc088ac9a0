import numpy as np
import pytest
import torch

from recsys.config import from_json, to_json
from recsys.models import EnsembleConfig, GRUConfig, TransformerConfig, build, join
from recsys.models.interface import torch_scorer

MEMBERS = (TransformerConfig(width=8, max_length=5), GRUConfig(width=12, max_length=5))


def test_scores_are_the_mean_of_the_members():
    ensemble = build(EnsembleConfig(members=MEMBERS), 21)
    histories = [np.array([3, 1]), np.array([4])]
    expected = np.mean([torch_scorer(member)(histories) for member in ensemble.members], axis=0)
    np.testing.assert_allclose(torch_scorer(ensemble)(histories), expected, atol=1e-5)
    assert ensemble.config.width == 20


def test_scores_are_weighted():
    weights = (0.5, 2.0)
    ensemble = join([build(member, 21) for member in MEMBERS], weights)
    histories = [np.array([3, 1]), np.array([4])]
    expected = sum(
        weight * torch_scorer(member)(histories)
        for weight, member in zip(weights, ensemble.members, strict=True)
    )
    np.testing.assert_allclose(torch_scorer(ensemble)(histories), expected, atol=1e-5)
    items = torch.tensor([[2, 5]])
    assert torch.equal(ensemble.item_vectors(items), ensemble.item_table()[items])
    assert from_json(EnsembleConfig, to_json(ensemble.config)) == ensemble.config
    with pytest.raises(ValueError, match="2 members cannot have 1 weights"):
        EnsembleConfig(members=MEMBERS, weights=(1.0,))


def test_members_that_read_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same max_length"):
        EnsembleConfig(members=(MEMBERS[0], GRUConfig(max_length=7)))
    with pytest.raises(ValueError, match="needs members"):
        EnsembleConfig(members=())
