import pytest

from benchmarks import content, variants
from benchmarks.command import run
from benchmarks.rows import Results, values_of
from recsys.files import write_json

PART = {"ndcg@10": 0.2, "hr@10": 0.3}
REPORT = {**PART, "cold": {**PART, "ndcg@10": 0.1}, "warm": PART}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The jobs that were asked for, none of which is run."""
    jobs = []

    def job(name, words, **places):
        jobs.append([name, *words])
        if name == "ensemble":
            output = places["output"]
            output.mkdir(parents=True, exist_ok=True)
            write_json(output / "report.json", {**REPORT, "ndcg@10": 0.4})

    for module in (content, variants):
        monkeypatch.setattr(module, "job", job)
    monkeypatch.setattr(
        content, "distill", lambda *words: jobs.append(["distill", *words]) or REPORT
    )
    monkeypatch.setattr(content, "train", lambda words, *_: jobs.append(["train"]) or REPORT)
    monkeypatch.setattr(content, "RUNS", tmp_path)
    return jobs


def test_variants_and_their_ensemble_are_measured_once(asked, tmp_path, capsys):
    options = content.Options(
        dataset="amazon-beauty",
        log="log",
        items="items",
        only=("ids",),
        seeds=(0, 1),
        ensemble=True,
    )
    for _ in range(2):
        run(Results("content", tmp_path), options, content.measure, content.markdown)
    assert [words[0] for words in asked if words[0] != "prepare"] == ["train", "train", "ensemble"]
    assert list(asked[0][:4]) == ["prepare", "amazon-beauty", "--cold-items", "0.05"]
    home = tmp_path / "amazon-beauty" / "content" / "5%-of-items-held-out"
    members = [str(home / "ids" / seed) for seed in "01"]
    assert asked[-1][1:5] == ["amazon-beauty", "--members", *members]
    rows = Results("content", tmp_path).rows()
    name = "ids, ensemble of 2; 5% of items held out"
    assert values_of(rows, "ndcg@10 all", variant=name) == [0.4]
    assert values_of(rows, "ndcg@10 cold", variant="ids; 5% of items held out") == [0.1, 0.1]
    assert f"| {name} | 0.4000 | 0.3000 | 0.1000 |" in capsys.readouterr().out


def test_an_ensemble_teaches_models_of_the_same_shape(asked, tmp_path):
    options = content.Options(
        dataset="amazon-beauty", log="log", items="items", only=("ids and text",), taught=True
    )
    for _ in range(2):
        run(Results("content", tmp_path), options, content.measure, content.markdown)
    taught = [words[0] for words in asked if words[0] not in ("prepare", "train")]
    assert taught == ["ensemble", "distill"] * 3  # one that is there is not made anew
    _, words, learns_from, output = asked[-1]
    assert {"--model.width", "--model.content", "--train.seed"} < set(words)
    home = tmp_path / "amazon-beauty" / "content" / "5%-of-items-held-out"
    assert learns_from.teacher == home / "ids and text, ensemble of 3"
    assert output == home / "ids and text, taught by the ensemble" / "2"
    rows = Results("content", tmp_path).rows()
    name = "ids and text, taught by the ensemble; 5% of items held out"
    assert values_of(rows, "ndcg@10 all", variant=name) == [0.2] * 3


def test_an_unknown_variant_and_a_missing_log_are_refused():
    with pytest.raises(ValueError, match="no variant images"):
        content.Options(dataset="amazon-beauty", log="log", items="items", only=("images",))
    with pytest.raises(ValueError, match="or the dataset made of them by --prepared"):
        content.Options(dataset="amazon-beauty", log="log")


def test_a_dataset_that_is_given_is_not_prepared(asked, tmp_path):
    made = {"cold_items": 0.05, "content": {"text_columns": ["title"]}}
    write_json(tmp_path / "stage.json", {"config": made})
    given = {"dataset": "amazon-beauty", "prepared": tmp_path, "only": ("ids",), "seeds": (0,)}
    with pytest.raises(ValueError, match=r"--cold-items 0.05 --text-columns title$"):
        content.measure(Results("content", tmp_path), content.Options(**given))
    options = content.Options(**given, text_columns=("title",), device="cuda")
    content.measure(Results("content", tmp_path), options)
    assert [words[0] for words in asked] == ["train"]
    (row, *_) = Results("content", tmp_path).rows()
    assert "--train.device cuda" in row.command
