import shutil
from types import SimpleNamespace

import pytest

from benchmarks import next_title, text_models
from benchmarks.rows import Results, Subject
from recsys.train.text import TextTrainConfig
from tests.distill.tiny_bert import save_tiny_bert


def test_the_table_says_what_of_the_gap_is_closed(tmp_path):
    results = Results("next_title", tmp_path)
    found = {"teacher": 0.08, "student alone": 0.04, "student": 0.07, "compressed student": 0.06}
    for variant, ndcg in found.items():
        values = {"ndcg@10": (ndcg, ""), "hr@10": (0.1, ""), "size_bytes": (2.0**20, "bytes")}
        results.put(Subject("movielens-1m", "recsys", variant, 0), "command", values)
    lines = next_title.markdown(results.rows()).splitlines()
    assert "| teacher | 0.0800 | 0.1000 | 1 | 1.0 MiB |" in lines
    assert "| of the gap, the student closes | 75% | there is none |  |  |" in lines
    assert "| of the teacher, the compressed student keeps | 75% | 100% |  |  |" in lines


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": "yelp", "log": "l", "items": "i"},
        {"dataset": "movielens-1m", "log": "l"},
        {"dataset": "movielens-1m", "items": "i"},
    ],
)
def test_what_has_no_titles_is_refused(given):
    with pytest.raises(ValueError, match="give one of movielens-1m, amazon-beauty"):
        next_title.Options(**given)


def as_it_is(model, directory, precision="int8"):
    """A compressed model that was not compressed."""
    return SimpleNamespace(categories=model.categories, logits=model.logits, size_bytes=1)


def test_another_length_of_history_is_another_model(titled, tmp_path, monkeypatch):
    quick = TextTrainConfig(epochs=1, batch_size=16)
    for name in ("TEACHER_TRAINING", "STUDENT_TRAINING"):
        monkeypatch.setattr(next_title, name, quick)
    monkeypatch.setattr(next_title, "TITLES", {"movielens-1m": ("title",)})
    monkeypatch.setattr(next_title, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(
        next_title,
        "job",
        lambda name, words, output: shutil.copytree(titled.path, output, dirs_exist_ok=True),
    )
    monkeypatch.setattr(text_models, "compress", as_it_is)
    encoder = save_tiny_bert(tmp_path / "bert")
    results = Results("next_title", tmp_path)
    for num_last in (1, 2):
        options = next_title.Options(
            dataset="movielens-1m",
            log="log",
            items="items",
            encoder=encoder,
            num_last=num_last,
            seeds=(0,),
        )
        next_title.measure(results, options)
        rows = results.rows()
        assert {row.variant for row in rows} == set(text_models.LINES) - {text_models.BINARY}
        assert all(f"--num-last {num_last} " in row.command for row in rows)
    trained = (tmp_path / "runs" / "movielens-1m" / "next_title").glob("*/teacher.safetensors")
    assert len(list(trained)) == 2


def test_a_row_s_command_has_what_was_read():
    options = next_title.Options(
        dataset="movielens-1m", log="log.csv", items="items.csv", num_last=3
    )
    words = "movielens-1m --num-last 3 --num-per-user 2 --max-tokens 32 --seeds 1"
    assert " ".join(next_title._words(options, 1)) == words
