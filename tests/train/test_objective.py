from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from recsys.data.batches import Batches
from recsys.models import TransformerConfig, build
from recsys.models.interface import PackedRows
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit
from recsys.train.objective import (
    LossConfig,
    NextItem,
    Sampler,
    next_item,
    objective,
    seen_items,
    to_tensors,
)

MODEL = TransformerConfig(
    width=16, num_layers=1, num_heads=2, head_width=8, feed_forward_width=32, max_length=8
)
LOSSES = {
    "new items only": LossConfig(),
    "all items": LossConfig(leave_out_seen=False),
    "smoothed": LossConfig(label_smoothing=0.1, leave_out_seen=False),
    "sampled": LossConfig(kind="sampled-softmax", num_negatives=16),
    "gbce": LossConfig(kind="gbce", num_negatives=16),
}


@pytest.fixture
def batch(dataset):
    return to_tensors(
        Batches(dataset, num_rows=4, length=8, seed=0, epoch=0).batch(0), torch.device("cpu")
    )


def test_the_plain_loss_is_the_default(dataset_directory):
    assert objective(LossConfig(), dataset_directory) is next_item


def test_what_is_seen_is_what_stands_before_in_the_same_sequence():
    items_BL, segments_BL = torch.tensor([[5, 6, 7, 8, 0]]), torch.tensor([[1, 1, 2, 2, 0]])
    inputs = PackedRows(items_BL, items_BL, segments_BL, items_BL, items_BL)
    seen_BL = [set(row) - {0} for row in seen_items(inputs)[0].tolist()]
    assert seen_BL == [{5}, {5, 6}, {7}, {7, 8}, set()]


def test_the_softmax_is_over_what_is_new_to_the_user(dataset, dataset_directory, batch):
    torch.manual_seed(0)
    model = build(replace(MODEL, dropout=0.0), dataset.num_items_with_padding)
    scores_BLV = model.encode(batch.inputs) @ model.item_table().T
    everywhere = functional.cross_entropy(
        scores_BLV.flatten(0, 1), batch.targets_BL.flatten(), ignore_index=0, reduction="sum"
    )
    seen_BLV = torch.zeros_like(scores_BLV, dtype=torch.bool).scatter(
        2, seen_items(batch.inputs), True
    )
    seen_BLV.scatter_(2, batch.targets_BL[..., None], False)
    new = functional.cross_entropy(
        scores_BLV.masked_fill(seen_BLV, -torch.inf).flatten(0, 1),
        batch.targets_BL.flatten(),
        ignore_index=0,
        reduction="sum",
    )
    for config, expected in (
        (LossConfig(), new),
        (LossConfig(leave_out_seen=False), everywhere),
    ):
        torch.testing.assert_close(objective(config, dataset_directory)(model, batch), expected)
        torch.testing.assert_close(NextItem(config, dataset_directory)(model, batch), expected)


def test_a_large_sample_gives_the_softmax_over_the_catalogue(dataset, dataset_directory, batch):
    torch.manual_seed(0)
    model = build(replace(MODEL, dropout=0.0), dataset.num_items_with_padding)
    many = LossConfig(kind="sampled-softmax", num_negatives=300_000)
    sampled = NextItem(many, dataset_directory)(model, batch)
    torch.testing.assert_close(sampled, next_item(model, batch), rtol=1e-2, atol=0)

    sampled = NextItem(replace(many, leave_out_seen=False), dataset_directory)(model, batch)
    scores_BLV = model.encode(batch.inputs) @ model.item_table()[1:].T
    whole = functional.cross_entropy(
        scores_BLV.transpose(1, 2), batch.targets_BL - 1, ignore_index=-1, reduction="sum"
    )
    torch.testing.assert_close(sampled, whole, rtol=1e-2, atol=0)


@pytest.mark.parametrize("config", LOSSES.values(), ids=LOSSES)
def test_every_loss_learns(config, dataset_directory, tmp_path):
    train = TrainConfig(epochs=30, batch_rows=4, learning_rate=1e-2, evaluate_every=30)
    task = Task(
        dataset=dataset_directory,
        model=MODEL,
        train=train,
        objective=objective(config, dataset_directory),
    )
    assert fit(task, tmp_path).history[-1]["ndcg@10"] > 0.5


def test_items_are_drawn_by_their_count_to_the_power_and_padding_never(dataset, dataset_directory):
    torch.manual_seed(0)
    for power in (0.5, 0.0):
        drawn = Sampler(dataset_directory, power).draw(200_000, torch.device("cpu"))
        counts_V = torch.bincount(drawn.items_M, minlength=dataset.num_items_with_padding)
        weights_V = torch.from_numpy((dataset.item_counts_V + 1.0) ** power)
        weights_V[0] = 0
        expected_V = weights_V / weights_V.sum()
        torch.testing.assert_close(counts_V / 200_000, expected_V.float(), atol=0.005, rtol=0)
        assert counts_V[0] == 0
        first_M = drawn.place(drawn.items_M) - 1
        assert torch.equal(drawn.items_M[first_M], drawn.items_M)
        assert drawn.place(torch.tensor([[0, dataset.num_items_with_padding]])).tolist() == [[0, 0]]
        assert torch.equal(drawn.times_M[first_M], counts_V[drawn.items_M])
        assert drawn.times_M.sum() == 200_000


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"calibration": 2.0}, "calibration must be in"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"label_smoothing": 0.1}, "add --loss.no-leave-out-seen"),
        (
            {"label_smoothing": 0.1, "kind": "gbce", "leave_out_seen": False},
            "labels of gbce are not smoothed",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        LossConfig(**setting)
