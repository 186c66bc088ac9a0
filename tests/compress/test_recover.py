"""What recovery trains with."""

from types import SimpleNamespace

import pytest
import torch

from recsys.compress.recover import LEARNING_RATE_SHARE, recovery
from recsys.models import build
from recsys.models.transformer import TransformerConfig
from recsys.train.config import TrainConfig
from recsys.train.objective import next_item


@pytest.mark.parametrize(
    ("row_length", "batch_rows", "expected"),
    [(20, 4, (20, 4)), (40, 4, (20, 8)), (15, 4, (15, 4)), (None, 4, (20, 4)), (30, 3, (20, 4))],
)
def test_a_shorter_view_has_as_many_positions_in_a_batch(
    dataset_directory, tmp_path, row_length, batch_rows, expected
):
    tasks = []

    def trainer(task, _):
        tasks.append(task)
        return SimpleNamespace(model=model)

    torch.manual_seed(0)
    model = build(TransformerConfig(width=8, num_layers=1, num_heads=1, max_length=20), 25)
    train = TrainConfig(batch_rows=batch_rows, row_length=row_length)
    recovery(dataset_directory, next_item, train, tmp_path, trainer)(model, 3, 8)
    (task,) = tasks
    assert (task.train.row_length, task.train.batch_rows) == expected
    assert (task.train.epochs, task.weight_bits) == (3, 8)
    assert task.train.learning_rate == train.learning_rate * LEARNING_RATE_SHARE
