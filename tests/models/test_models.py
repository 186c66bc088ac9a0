import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.data.batches import pad_histories
from recsys.models import TransformerConfig, build, load_model, save
from recsys.models.interface import SequenceModel, torch_scorer
from recsys.models.layers import Dropout

NUM_ITEMS = 20
CONFIGS = [
    TransformerConfig(width=16, num_heads=2, head_width=8, feed_forward_width=32, max_length=10),
    TransformerConfig(width=16, num_layers=1, head_width=4, feed_forward_width=8, max_length=10),
    TransformerConfig(
        width=16, head_width=8, feed_forward_width=32, max_length=10, item_rank=4, linear_rank=3
    ),
]


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    return build(request.param, NUM_ITEMS + 1).eval()


def encode(model, *histories):
    """Encodes one packed row."""
    items = torch.tensor([[item for history in histories for item in history]])
    positions = torch.cat([torch.arange(len(h)) for h in histories])[None]
    segments = torch.cat([torch.full((len(h),), i) for i, h in enumerate(histories, 1)])[None]
    return model.encode(items, positions, segments)[0]


def test_is_a_sequence_model(model):
    assert isinstance(model, SequenceModel)


def test_a_position_does_not_see_the_future(model):
    torch.testing.assert_close(encode(model, [1, 2, 3, 4])[:3], encode(model, [1, 2, 3, 9])[:3])


def test_a_position_sees_the_past(model):
    assert not torch.allclose(encode(model, [1, 2, 3])[2], encode(model, [5, 2, 3])[2])
    assert not torch.allclose(encode(model, [1, 2, 3])[2], encode(model, [2, 1, 3])[2])


def test_sequences_of_a_row_do_not_see_each_other(model):
    packed = encode(model, [1, 2, 3], [4, 5])
    torch.testing.assert_close(packed[:3], encode(model, [1, 2, 3]))
    torch.testing.assert_close(packed[3:], encode(model, [4, 5]))


def test_last_state_is_the_packed_state_and_ignores_padding(model):
    history_BL, length_B = pad_histories([np.array([1, 2, 3]), np.array([4])], 10)
    state_BD = model.last_state(torch.from_numpy(history_BL), torch.from_numpy(length_B))
    torch.testing.assert_close(state_BD[0], encode(model, [1, 2, 3])[-1])
    torch.testing.assert_close(state_BD[1], encode(model, [4])[-1])


def test_longer_histories_count_by_their_latest_items(model):
    score = torch_scorer(model)
    long = np.arange(1, 16)
    np.testing.assert_allclose(score([long]), score([long[-10:]]), rtol=1e-5)
    assert np.isfinite(score([np.array([], dtype=np.int32)])).all()


def test_save_and_load(model, tmp_path):
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [None, *map(str, range(NUM_ITEMS))]}), items)
    save(model, tmp_path / "model", items=items, role="student")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    histories = [np.array([1, 2]), np.array([3])]
    np.testing.assert_array_equal(torch_scorer(loaded)(histories), torch_scorer(model)(histories))


def test_an_impossible_shape_is_refused():
    with pytest.raises(ValueError, match="even"):
        TransformerConfig(head_width=7)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    dropout = Dropout(0.3)
    torch.manual_seed(0)
    x = torch.ones(1001, 101)
    dropped = dropout(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    torch.manual_seed(0)
    assert torch.equal(dropout(x), dropped)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize(
    "setting",
    [
        {"width": 0},
        {"head_width": 0},
        {"feed_forward_width": -1},
        {"item_rank": 0},
        {"linear_rank": -1},
    ],
)
def test_shapes_that_cannot_be_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        TransformerConfig(**setting)
