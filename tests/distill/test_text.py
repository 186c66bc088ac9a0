"""Teaching of text classifiers: losses worked out by hand, and the five calls of the article."""

import itertools
import math
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.compress.text import CompressedClassifier, compress
from recsys.data.texts import Titles
from recsys.distill.text import (
    TextDistillation,
    TextDistillConfig,
    attention_loss,
    label_loss,
    load_teacher,
    state_loss,
    train_student,
)
from recsys.evaluate.text import evaluate, rank
from recsys.models.text import load_classifier, simple_student
from recsys.train.text import TextTrainConfig, fit
from tests.distill.tiny_bert import CATEGORIES, MINILM, WORDS, save_tiny_bert, telling_texts

README = Path(__file__).parents[2] / "README.md"
QUICK = TextTrainConfig(epochs=6, batch_size=8, learning_rate=1e-2)
LOGITS, TEACHER, LABELS = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2), torch.tensor([0])


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


def test_softmax_loss_by_hand():
    # p = (1/4, 3/4); the teacher says (1/2, 1/2); with T = 2 the logits are (0, log sqrt 3).
    hard, soft = -math.log(1 / 4), -0.5 * (math.log(1 / 4) + math.log(3 / 4))
    found = label_loss("softmax", LOGITS, LABELS, TEACHER, soft_weight=0.25, temperature=1)
    assert float(found) == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-5)
    total = 1 + math.sqrt(3)
    softened = -0.5 * (math.log(1 / total) + math.log(math.sqrt(3) / total))
    found = label_loss("softmax", LOGITS, LABELS, TEACHER, soft_weight=1, temperature=2)
    assert float(found) == pytest.approx(4 * softened, rel=1e-5)


def test_binary_loss_by_hand():
    # p = sigmoid = (1/2, 3/4); hard y = (1, 0), soft y = (1/2, 1/2).
    hard = -math.log(1 / 2) - math.log(1 / 4)
    soft = -math.log(1 / 2) - 0.5 * (math.log(3 / 4) + math.log(1 / 4))
    found = label_loss("binary", LOGITS, LABELS, TEACHER, soft_weight=0.25, temperature=1)
    assert float(found) == pytest.approx(0.75 * hard + 0.25 * soft, rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "binary"])
def test_the_temperature_keeps_the_scale_of_gradients(kind):
    torch.manual_seed(0)
    teacher, labels = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    sizes = []
    for temperature in (50.0, 100.0):
        logits = torch.zeros(4, 5, requires_grad=True)
        loss = label_loss(kind, logits, labels, teacher, soft_weight=1, temperature=temperature)
        loss.backward()
        sizes.append(float((logits.grad - logits.grad.mean(dim=1, keepdim=True)).norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_state_loss_counts_tokens_only():
    states, mask = torch.zeros(1, 2, 2), torch.tensor([[True, False]])
    assert float(state_loss(states, torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), mask)) == 5


def test_attention_loss_by_hand():
    teacher = torch.tensor([[[[0.5, 0.5, 0.0]] * 3]])
    student = torch.tensor([[[[0.25, 0.75, 0.0]] * 2 + [[1.0, 0.0, 0.0]]]])
    mask = torch.tensor([[True, True, False]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(attention_loss(student, teacher, mask)) == pytest.approx(expected, rel=1e-5)
    assert float(attention_loss(teacher, teacher, mask)) == 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_states_and_attention(directory):
    texts = telling_texts(20)
    teacher = load_classifier(directory, CATEGORIES).eval()
    student = simple_student(teacher, texts, num_layers=2, width=16).eval()
    tokens_NT, labels_N = teacher.tokenizer(texts.texts_N), torch.from_numpy(texts.labels_N)
    losses = [
        TextDistillation(
            teacher,
            student.cut,
            TextDistillConfig(states_weight=weight, attention_weight=weight),
        )(student, tokens_NT, labels_N)
        for weight in (0.0, 100.0)
    ]
    torch.testing.assert_close(*losses)


def test_a_small_table_is_learned_by_heart_and_the_same_seed_gives_the_same(directory):
    texts = telling_texts(40)
    models = [load_classifier(directory, CATEGORIES) for _ in range(2)]
    histories = [fit(model, texts, QUICK) for model in models]
    assert histories[0] == histories[1]
    assert histories[0][-1].loss < histories[0][0].loss / 2
    assert evaluate(models[0], texts)["accuracy"] > 0.95


def test_the_five_calls_of_the_readme(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = telling_texts(40)
    genres = [[CATEGORIES[label]] for label in texts.labels_N]
    columns = {"title": texts.texts_N, "description": texts.texts_N, "genres": genres}
    pq.write_table(pa.table(columns), "items.parquet")
    indented = re.search(r"In Python:\n((?:\n|    .*\n)+)", README.read_text())
    assert indented is not None
    called = {}
    exec(textwrap.dedent(indented[1]).replace("bert-base-uncased", directory), called)
    student, compressed, test = (called[name] for name in ("student", "compressed", "test_data"))
    assert evaluate(compressed, test)["num_texts"] == 8
    whole = compress(student, "whole", "float32")
    assert compressed.size_bytes < whole.size_bytes
    expected = student(student.tokenizer(test.texts_N)).detach().numpy()
    np.testing.assert_allclose(whole.logits(test.texts_N), expected, atol=1e-4)
    np.testing.assert_allclose(compressed.logits(test.texts_N), expected, atol=0.1)
    again = CompressedClassifier(Path("compressed"))
    np.testing.assert_array_equal(again.predict(test.texts_N), compressed.predict(test.texts_N))


def test_a_student_learns_what_its_teacher_knows_and_leaves_it_as_it_is(directory):
    training, test = telling_texts(120).split(0.2, seed=0)
    teacher = load_teacher(directory, training, QUICK, max_tokens=16)
    weights = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = simple_student(teacher, training, num_layers=1)
    train_student(student, teacher, training, QUICK)
    assert evaluate(student, test)["accuracy"] > 0.8
    assert all(torch.equal(weights[name], weight) for name, weight in teacher.state_dict().items())


def test_a_student_from_noise_learns_from_binary_labels(directory):
    texts = telling_texts(60)
    teacher = load_teacher(directory, texts, QUICK, max_tokens=16)
    student = simple_student(teacher, texts, num_layers=1, from_teacher=False)
    before = evaluate(student, texts)["accuracy"]
    train_student(student, teacher, texts, QUICK, TextDistillConfig(labels="binary"))
    assert evaluate(student, texts)["accuracy"] > before + 0.3


def test_minilm_teaches():
    texts = telling_texts(12)
    step = TextTrainConfig(epochs=1, batch_size=16)
    teacher = load_teacher(str(MINILM), texts, step, max_tokens=8)
    student = simple_student(teacher, texts, num_layers=2, width=64)
    assert student.model.config.num_attention_heads == 2
    (epoch,) = train_student(student, teacher, texts, step)
    assert 0 < epoch.loss < 100


def test_a_student_learns_from_titles_what_comes_next(directory, titled, tmp_path):
    titles = Titles(titled, ["title"], num_last=2)
    # Two words an item: no two items have the same, and the tokenizer knows them.
    pairs = [f"{one} {other}" for one, other in itertools.combinations(WORDS, 2)]
    titles.titles_V = ["", *pairs[: len(titles.items)]]
    texts = titles.next_items(num_per_user=10)
    before = rank(load_classifier(directory, titles.items), titles)["ndcg@10"]
    training = replace(QUICK, epochs=8)
    teacher = load_teacher(directory, texts, training, descriptions=titles.descriptions)
    student = simple_student(teacher, texts, num_layers=1)
    train_student(student, teacher, texts, QUICK)
    found = rank(student, titles)
    assert found["ndcg@10"] > before + 0.2
    assert found["protocol"] == "full-ranking, seen items removed"
    compressed = compress(student, tmp_path / "compressed")
    assert rank(compressed, titles)["ndcg@10"] == pytest.approx(found["ndcg@10"], abs=0.05)
    with pytest.raises(ValueError, match="other items"):
        rank(load_classifier(directory, CATEGORIES), titles)


def test_a_compressed_classifier_answers_a_text_alike_in_any_company_or_not_at_all(
    directory, tmp_path
):
    texts = telling_texts(20).texts_N
    classifier = load_classifier(directory, CATEGORIES, max_tokens=16)
    compressed = compress(classifier, tmp_path)
    alone_NC = np.concatenate([compressed.logits([text]) for text in texts])
    np.testing.assert_array_equal(compressed.logits(texts), alone_NC)
    assert compressed.logits([]).shape == (0, len(CATEGORIES))
    with (tmp_path / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="not as it was written"):
        CompressedClassifier(tmp_path)


def test_what_does_not_belong_together_is_said(directory):
    texts = telling_texts(20)
    teacher = load_classifier(directory, CATEGORIES)
    with pytest.raises(ValueError, match="no student of the teacher's"):
        train_student(load_classifier(directory, CATEGORIES), teacher, texts)
    others = texts._replace(categories=("a", "b", "c"))
    with pytest.raises(ValueError, match="other categories than the model"):
        fit(teacher, others, QUICK)
    with pytest.raises(ValueError, match="other categories than the classifier"):
        evaluate(teacher, others)


@pytest.mark.parametrize(
    "settings",
    [{"soft_weight": 1.5}, {"temperature": 0.0}, {"states_weight": -1.0}],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        TextDistillConfig(**settings)
