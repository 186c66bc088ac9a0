import numpy as np
import pytest
import torch

from recsys.data.batches import first_rows
from recsys.distill import targets as module
from recsys.distill.targets import Targets, TargetsConfig, write_targets
from recsys.models import TransformerConfig, build
from recsys.models.interface import torch_scorer

TOP_K = 5
MODEL = TransformerConfig(
    width=16, num_layers=1, num_heads=2, head_width=8, feed_forward_width=32, max_length=8
)


@pytest.fixture
def teacher(dataset):
    torch.manual_seed(0)
    return build(MODEL, dataset.num_items_with_padding).eval()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "USERS_PER_SHARD", 25)


def test_every_position_has_the_teachers_own_answer(dataset, teacher, tmp_path):
    write_targets(teacher, dataset, tmp_path, TargetsConfig(top_k=TOP_K))
    targets = Targets(tmp_path)
    first = first_rows(dataset)
    assert len(targets) == first[-1]
    score = torch_scorer(teacher)
    for user in range(dataset.num_users):
        for position in range(min(int(dataset.train_length_U[user]) - 1, MODEL.max_length)):
            scores_V = score([dataset.history(user)[: position + 1]])[0]
            scores_V[0] = -np.inf
            items_NK, scores_NK = targets.look_up(np.array([first[user] + position]))
            np.testing.assert_allclose(np.sort(scores_V)[::-1][:TOP_K], scores_NK[0], atol=2e-3)
            np.testing.assert_allclose(scores_V[items_NK[0]], scores_NK[0], atol=2e-3)


def test_long_sequences_are_answered_with_at_least_half_a_window(dataset, teacher, tmp_path):
    write_targets(teacher, dataset, tmp_path, TargetsConfig(top_k=TOP_K))
    items_NK, _ = Targets(tmp_path).look_up(np.arange(first_rows(dataset)[-1]))
    assert (items_NK > 0).all()


def test_interrupted_writing_goes_on(dataset, teacher, tmp_path):
    config = TargetsConfig(top_k=TOP_K)
    write_targets(teacher, dataset, tmp_path, config)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1
    before = {path: path.read_bytes() for path in files}
    files[-1].unlink()
    write_targets(teacher, dataset, tmp_path, config)
    assert {path: path.read_bytes() for path in sorted(tmp_path.iterdir())} == before


def test_a_directory_without_targets_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no targets"):
        Targets(tmp_path)
