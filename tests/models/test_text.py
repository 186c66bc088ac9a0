"""Text classifiers: padding counts nothing, and a student starts as a part of its teacher."""

import shutil

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from recsys.models.text import load_classifier, simple_student
from tests.distill.tiny_bert import CATEGORIES, save_tiny_bert, telling_texts

TEXTS = telling_texts(20)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"), num_layers=4)


@pytest.fixture
def teacher(directory):
    return load_classifier(directory, CATEGORIES, max_tokens=16).eval()


def test_padding_of_a_batch_does_not_matter(teacher):
    together_NC = teacher(teacher.tokenizer(["a robot", "the ghost of the night in space"]))
    alone_NC = teacher(teacher.tokenizer(["a robot"]))
    torch.testing.assert_close(together_NC[:1], alone_NC)


def test_what_is_read_agrees_with_what_is_told(teacher):
    tokens_NT = teacher.tokenizer(TEXTS.texts_N)
    found = teacher.read(tokens_NT)
    torch.testing.assert_close(found.logits_NC, teacher(tokens_NT))
    assert len(found.states_NTD) == 5
    assert [tuple(a.shape) for a in found.attention_NHTT] == [(20, 4, *2 * tokens_NT.shape[1:])] * 4
    torch.testing.assert_close(found.attention_NHTT[0].sum(dim=-1).mean(), torch.tensor(1.0))


def test_a_student_of_full_size_is_the_teacher(teacher):
    student = simple_student(teacher, TEXTS, num_layers=4, width=16).eval()
    tokens_NT = teacher.tokenizer(TEXTS.texts_N)
    torch.testing.assert_close(student(tokens_NT), teacher(tokens_NT))


def test_a_student_shows_what_it_attends_to_before_dropout(teacher):
    teacher.model.config.attention_probs_dropout_prob = 0.5
    student = simple_student(teacher, TEXTS, num_layers=2, width=8).train()
    for attention_NHTT in student.read(teacher.tokenizer(TEXTS.texts_N)).attention_NHTT:
        sums_NHT = attention_NHTT.sum(dim=-1)
        torch.testing.assert_close(sums_NHT, torch.ones_like(sums_NHT))


def test_a_student_of_full_width_has_every_nth_layer(teacher):
    student = simple_student(teacher, TEXTS, num_layers=2, width=16)
    weights = teacher.state_dict()
    for name, weight in student.state_dict().items():
        of_teacher = name.replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        torch.testing.assert_close(weight, weights[of_teacher])


def test_a_narrower_student_has_whole_heads_and_units_seen_through_the_projection(teacher):
    student = simple_student(teacher, TEXTS, num_layers=2, width=8)
    cut, weights = student.cut, teacher.state_dict()
    assert cut.layers == [1, 3]
    torch.testing.assert_close(cut.projection_DS.T @ cut.projection_DS, torch.eye(8))
    names = dict(student.state_dict())
    layer, of_teacher = "model.encoder.layer.1.", "model.encoder.layer.3."
    query_HSD = weights[f"{of_teacher}attention.self.query.weight"].view(4, 4, 16)
    expected = query_HSD[cut.heads[1]].flatten(0, 1) @ cut.projection_DS
    torch.testing.assert_close(names[f"{layer}attention.self.query.weight"], expected)
    assert names[f"{layer}output.dense.weight"].shape == (8, 16)
    table = weights["model.embeddings.word_embeddings.weight"] @ cut.projection_DS
    torch.testing.assert_close(names["model.embeddings.word_embeddings.weight"], table)


def test_the_heads_that_are_kept_write_most(teacher):
    with torch.no_grad():
        values = teacher.model.encoder.layer[3].attention.self.value.weight.view(4, 4, 16)
        values[2] *= 100
        values[0] *= 50
    student = simple_student(teacher, TEXTS, num_layers=1, width=8)
    assert student.cut.heads[0].tolist() == [0, 2]


def test_a_student_from_noise_has_the_shape_and_not_the_weights(teacher):
    part, noise = (simple_student(teacher, TEXTS, from_teacher=start) for start in (True, False))
    for name, weight in noise.state_dict().items():
        assert weight.shape == part.state_dict()[name].shape
    assert not torch.equal(noise.head.weight, part.head.weight)


def test_categories_start_where_their_texts_lie(directory):
    texts = ["a robot", "", "ghost blood", "a robot"]
    described = load_classifier(directory, ["p", "q", "r", "s"])
    described.describe(texts)
    weight_CD = described.head.weight.detach()
    torch.testing.assert_close(weight_CD.norm(dim=1), torch.tensor([1.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(weight_CD[0], weight_CD[3])
    assert float(weight_CD[0] @ weight_CD[2]) < 0
    # Seen from the middle of both texts, each lies as far on its side as the other on the other.
    logits_NC = described.logits(["ghost blood", "a robot"])
    np.testing.assert_allclose(logits_NC[:, 1], 0)
    np.testing.assert_allclose(logits_NC[:, 0], -logits_NC[:, 2], rtol=1e-4)
    assert logits_NC[0, 2] > 0 > logits_NC[1, 2]
    with pytest.raises(ValueError, match="3 texts cannot describe 4 categories"):
        described.describe(texts[1:])
    with pytest.raises(ValueError, match="no category has a text"):
        described.describe([""] * 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_layers": 5}, "num_layers is 5, and the teacher has 4 layers"),
        ({"width": 6}, "width is 6; with the teacher's heads it can be a multiple of 4 up to 16"),
        ({"width": 20}, "width is 20"),
    ],
)
def test_a_student_is_no_larger_than_its_teacher(teacher, shape, message):
    with pytest.raises(ValueError, match=message):
        simple_student(teacher, TEXTS, **shape)


def test_what_is_no_encoder_of_bert_s_form_is_said(directory, tmp_path):
    no_weights = tmp_path / "no-weights"
    shutil.copytree(directory, no_weights)
    (no_weights / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is not an encoder of text: it has no weights"):
        load_classifier(str(no_weights), CATEGORIES)
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    DistilBertModel(
        DistilBertConfig(vocab_size=15, dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    ).save_pretrained(other)
    with pytest.raises(ValueError, match="is a DistilBertModel, which is not of BERT's form"):
        load_classifier(str(other), CATEGORIES)
