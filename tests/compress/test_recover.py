"""What recovery trains with."""

from types import SimpleNamespace

import pytest
import torch

from recsys.compress import CodebookItems, Quantize
from recsys.compress.recover import LEARNING_RATE_SHARE, recovery
from recsys.models import build
from recsys.models.transformer import TransformerConfig
from recsys.train.config import TrainConfig
from recsys.train.objective import next_item

CONFIG = TransformerConfig(width=8, num_layers=1, num_heads=1, max_length=20)


def task_of(step, train, dataset_directory, directory):
    """What is trained after a step, in 8 bits."""
    torch.manual_seed(0)
    model, tasks = build(CONFIG, 25), []

    def trainer(task, _):
        tasks.append(task)
        return SimpleNamespace(model=model)

    recovery(dataset_directory, next_item, train, directory, trainer)(model, step, 8)
    (task,) = tasks
    return task


@pytest.mark.parametrize(
    ("row_length", "batch_rows", "expected"),
    [(20, 4, (20, 4)), (40, 4, (20, 8)), (15, 4, (15, 4)), (None, 4, (20, 4)), (30, 3, (20, 4))],
)
def test_a_shorter_view_has_as_many_positions_in_a_batch(
    dataset_directory, tmp_path, row_length, batch_rows, expected
):
    train = TrainConfig(batch_rows=batch_rows, row_length=row_length)
    task = task_of(Quantize(recover_epochs=3), train, dataset_directory, tmp_path)
    assert (task.train.row_length, task.train.batch_rows) == expected
    assert (task.train.epochs, task.weight_bits) == (3, 8)


def test_fresh_codes_recover_at_a_rate_of_their_own(dataset_directory, tmp_path):
    fresh, later = CodebookItems(codes=4, recover_epochs=1), Quantize(bits=4, recover_epochs=1)
    for step, share in ((fresh, 1), (later, LEARNING_RATE_SHARE)):
        task = task_of(step, TrainConfig(), dataset_directory, tmp_path / type(step).__name__)
        assert task.train.learning_rate == TrainConfig().learning_rate * share
