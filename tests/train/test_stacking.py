import numpy as np
import pytest
import torch

from recsys.models import TransformerConfig, build, join
from recsys.models.interface import torch_scorer
from recsys.train.stacking import _likeliest, stacked_weights

CONFIG = TransformerConfig(width=8, num_layers=1, num_heads=1, head_width=8, max_length=16)


def likelihood(model, dataset) -> float:
    """The mean log-probability of validation items among what is new, written out."""
    users_U, targets_U = dataset.targets("validation")
    logs = []
    for user, target in zip(users_U, targets_U, strict=True):
        history, item = dataset.history(user)[:target], dataset.history(user)[target]
        scores_V = torch_scorer(model)([history])[0].astype(np.float64)
        new_V = np.ones(len(scores_V), bool)
        new_V[0] = new_V[history] = False
        logs.append(scores_V[item] - np.log(np.exp(scores_V[new_V]).sum()))
    return float(np.mean(logs))


def test_validation_is_likelier_than_by_the_mean_and_by_weights_nearby(dataset):
    torch.manual_seed(0)
    members = [build(CONFIG, dataset.num_items_with_padding) for _ in range(2)]
    with torch.no_grad():
        for member in members:
            member.item_embedding.weight.mul_(10)
    weights = stacked_weights(members, dataset)
    best = likelihood(join(members, weights), dataset)
    assert best > likelihood(join(members), dataset)
    for number in range(2):
        for factor in (0.8, 1.25):
            other = list(weights)
            other[number] = max(other[number], 0.05) * factor
            assert best >= likelihood(join(members, tuple(other)), dataset) - 1e-4


def test_what_is_noise_counts_little_and_what_is_too_sure_less():
    draw = torch.Generator().manual_seed(0)
    logits_UV = torch.randn(4000, 12, generator=draw)
    items_U = torch.multinomial(logits_UV.softmax(-1), 1, generator=draw)[:, 0]
    scores_MUV = torch.stack([3 * logits_UV, torch.randn(4000, 12, generator=draw)])
    nothing = torch.zeros(4000, 12, dtype=torch.bool)
    too_sure, noise = _likeliest(scores_MUV, nothing, items_U)
    assert too_sure == pytest.approx(1 / 3, abs=0.03)
    assert noise < 0.05


def test_a_log_without_validation_is_refused(dataset, monkeypatch):
    nobody = np.zeros(0, np.int64)
    monkeypatch.setattr(dataset, "targets", lambda split: (nobody, nobody))
    members = [build(CONFIG, dataset.num_items_with_padding)]
    with pytest.raises(ValueError, match="no user has a new item in validation"):
        stacked_weights(members, dataset)
