import torch

from recsys.models.gru import GRU, GRUConfig
from tests.models.rows import pack

CONFIG = GRUConfig(width=8, hidden_width=6, num_layers=2, max_length=10, dropout=0.5)


def test_written_out_it_is_torchs_gru():
    torch.manual_seed(0)
    model = GRU(CONFIG, 21).eval()
    rows = pack([5, 3, 9, 1])
    embedded = model.embedding_norm(model.item_embedding(rows.items_BL))
    expected = model.norm(model.output(model.layers(embedded)[0]))
    torch.testing.assert_close(model.encode(rows), expected)


def test_a_sequence_has_one_mask_and_sequences_have_their_own():
    torch.manual_seed(0)
    model = GRU(CONFIG, 21).train()
    first, second = [1, 2, 3, 4], [5, 6, 7]
    mask = model._mask(pack(first, second), torch.empty(1, 7, 64))[0]
    assert (mask[:4] == mask[0]).all()
    assert (mask[4:] == mask[4]).all()
    assert not torch.equal(mask[0], mask[4])
    assert set(mask.unique().tolist()) == {0.0, 2.0}


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    model, rows = GRU(CONFIG, 21), pack([1, 2, 3])
    assert not torch.equal(model.train().encode(rows), model.encode(rows))
    assert torch.equal(model.eval().encode(rows), model.encode(rows))
