from dataclasses import replace

import pytest
import torch

from recsys.models.hstu import HSTU, HSTUConfig, time_bucket
from tests.models.rows import pack

CONFIG = HSTUConfig(width=8, num_heads=2, head_width=4, max_length=10)


def make(**settings):
    torch.manual_seed(0)
    model = HSTU(replace(CONFIG, **settings), 21).eval()
    for block in model.blocks:
        if block.time_bias is not None:
            torch.nn.init.normal_(block.time_bias)
    return model


def test_buckets_grow_with_the_logarithm():
    seconds = torch.tensor([0, 1, 2, 60, 3600, 86400, 10**9])
    # ln 2 / 0.301 = 2.3, ln 60 = 4.09, ln 3600 = 8.19, ln 86400 = 11.37; the last one is clipped
    assert time_bucket(seconds).tolist() == [0, 0, 2, 13, 27, 37, 63]
    assert torch.equal(time_bucket(-seconds), time_bucket(seconds))


def test_attention_by_hand():
    model = make(num_layers=1, num_heads=1, head_width=8)
    rows = pack([3, 5])
    x = model.embedding_norm(model.item_embedding(rows.items_BL))[0]
    block = model.blocks[0]
    gate, value, query, key = torch.nn.functional.silu(block.project(block.norm_1(x))).chunk(4, -1)
    # The second item: itself at distance 0 and no time, the first one 900 seconds ago.
    moments = rows.times_BL[0]
    ago = block.time_bias[time_bucket(moments[1] - moments[0])] + block.distance_bias[1]
    now = block.time_bias[0] + block.distance_bias[0]
    weights = torch.stack([query[1] @ key[0] + ago, query[1] @ key[1] + now])
    mixed = torch.nn.functional.silu(weights) / 10 @ value
    expected = x[1] + block.output(block.norm_2(mixed) * gate[1])
    torch.testing.assert_close(model.encode(rows)[0, 1], model.norm(expected))


@pytest.mark.parametrize(
    ("time", "reads_past", "reads_next"),
    [("none", False, False), ("past", True, False), ("target", True, True)],
)
def test_the_times_that_count(time, reads_past, reads_next):
    model, rows = make(time=time), pack([3, 5, 7])
    past = rows._replace(times_BL=rows.times_BL * torch.tensor([[1, 30, 900]]))
    later = rows._replace(next_times_BL=rows.next_times_BL + 10**6)
    assert torch.equal(model.encode(rows), model.encode(past)) != reads_past
    assert torch.equal(model.encode(rows), model.encode(later)) != reads_next


def test_histories_without_times_are_refused():
    history_BL, length_B = torch.tensor([[1, 2]]), torch.tensor([2])
    with pytest.raises(ValueError, match="reads the times"):
        make().last_state(history_BL, length_B)
    assert make(time="none").last_state(history_BL, length_B).shape == (1, 8)
