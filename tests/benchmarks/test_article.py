from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest

from benchmarks import article, text_models
from benchmarks.rows import Results, Subject
from recsys.train.text import TextTrainConfig
from tests.distill.tiny_bert import CATEGORIES, save_tiny_bert, telling_texts


def test_of_a_path_of_categories_the_last_counts():
    items = pa.table({"title": ["a", "b", "c"], "categories": [["Top", "x"], ["Top", "y"], None]})
    texts = article.texts_of("amazon-beauty", items)
    assert (texts.texts_N, set(texts.categories)) == (["a", "b"], {"x", "y"})


def test_the_table_stands_beside_the_article(tmp_path):
    results = Results("article", tmp_path)
    found = {"teacher": 0.8, "student alone": 0.4, "student": 0.7, "compressed student": 0.72}
    for variant, accuracy in found.items():
        values = {"accuracy": (accuracy, ""), "size_bytes": (2.0**21, "bytes")}
        results.put(Subject("movielens-1m", "recsys", variant, 0), "command", values)
    lines = article.markdown(results.rows()).splitlines()
    assert "| teacher | 90% | 80.0% | 2.0 MiB |" in lines
    assert "| of the gap, the student closes | 75% | 75% |  |" in lines
    assert "| of the teacher, the compressed student keeps | 89% | 90% |  |" in lines


def as_it_is(model, directory, precision="int8"):
    """A compressed model that was not compressed."""
    return SimpleNamespace(categories=model.categories, predict=model.predict, size_bytes=1)


def test_every_model_is_measured_and_what_was_trained_is_read(tmp_path, monkeypatch):
    texts = telling_texts(40)
    items = tmp_path / "items.jsonl"
    row = '{{"title": "{}", "description": "", "genres": "{}"}}'
    pairs = zip(texts.texts_N, texts.labels_N, strict=True)
    items.write_text("\n".join(row.format(text, CATEGORIES[label]) for text, label in pairs))
    monkeypatch.setattr(article, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(text_models, "compress", as_it_is)
    quick = TextTrainConfig(epochs=1, batch_size=16)
    options = article.Options(
        dataset="movielens-1m",
        items=str(items),
        encoder=save_tiny_bert(tmp_path / "bert"),
    )
    results = Results("article", tmp_path)
    models = article.models(results, options, 0)
    models = replace(models, teacher_training=quick, student_training=quick)
    models.measure()
    first = {(row.variant, row.metric): row.value for row in results.rows()}
    assert {variant for variant, _ in first} == set(text_models.LINES)
    for train in ("fine_tune", "fit", "train_student"):
        monkeypatch.setattr(text_models, train, lambda *_: pytest.fail("it was trained before"))
    models.measure()
    assert {(row.variant, row.metric): row.value for row in results.rows()} == first
