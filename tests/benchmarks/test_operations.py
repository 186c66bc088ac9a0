import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operations import peak_operations_per_second, step_operations
from recsys.models import TransformerConfig, build
from recsys.models.interface import PackedRows
from recsys.train.objective import TensorBatch, next_item

MODEL = TransformerConfig(
    width=16, num_layers=2, num_heads=2, head_width=8, feed_forward_width=24, max_length=8
)


def test_operations_counted_by_hand():
    model = TransformerConfig(
        width=2, num_layers=1, num_heads=1, head_width=4, feed_forward_width=3, max_length=5
    )
    projections = 4 * (2 * 2 * 4)
    attention = 2 * (2 * 5 * 4)
    feed_forward = 2 * (2 * 2 * 3)
    softmax = 2 * 2 * 7
    position = projections + attention + feed_forward + softmax
    counted = step_operations(model, num_rows=3, length=5, num_items_with_padding=7)
    assert counted == 3 * 3 * 5 * position


def test_operations_are_those_that_torch_counts():
    num_items, shape = 30, (4, 8)
    model = build(MODEL, num_items)
    items_BL = torch.randint(1, num_items, shape)
    positions_BL = torch.arange(shape[1]).expand(shape)
    ones_BL = torch.ones_like(items_BL)
    rows = PackedRows(items_BL, positions_BL, ones_BL, ones_BL, ones_BL)
    batch = TensorBatch(rows, items_BL, ones_BL)
    with FlopCounterMode(display=False) as counter:
        next_item(model, batch).backward()
    expected = step_operations(
        MODEL, num_rows=shape[0], length=shape[1], num_items_with_padding=num_items
    )
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_measured_and_settings_are_put_back(dtype, monkeypatch):
    monkeypatch.setattr("benchmarks.operations.SIZES", {"cpu": (64,)})
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    assert peak_operations_per_second(dtype, 1) > 0
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
