import numpy as np
import pytest

from recsys.models import EnsembleConfig, GRUConfig, TransformerConfig, build
from recsys.models.interface import torch_scorer

MEMBERS = (TransformerConfig(width=8, max_length=5), GRUConfig(width=12, max_length=5))


def test_scores_are_the_mean_of_the_members():
    ensemble = build(EnsembleConfig(members=MEMBERS), 21)
    histories = [np.array([3, 1]), np.array([4])]
    expected = np.mean([torch_scorer(member)(histories) for member in ensemble.members], axis=0)
    np.testing.assert_allclose(torch_scorer(ensemble)(histories), expected, atol=1e-5)
    assert ensemble.config.width == 20


def test_members_that_read_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same max_length"):
        EnsembleConfig(members=(MEMBERS[0], GRUConfig(max_length=7)))
    with pytest.raises(ValueError, match="needs members"):
        EnsembleConfig(members=())
