import dataclasses
import json
import shutil

import pytest
import torch

from jobs import evaluate
from jobs.command import command
from recsys.checkpoint import Origin, seal_model
from recsys.compress import export
from recsys.compress.package import package
from recsys.files import read_json, write_json
from recsys.models import TransformerConfig, build

CONFIG = TransformerConfig(
    width=8, num_layers=1, num_heads=1, head_width=8, feed_forward_width=8, max_length=10
)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory, dataset):
    """An untrained model, exported and with its report."""
    directory = tmp_path_factory.mktemp("models") / "student"
    torch.manual_seed(0)
    model = build(CONFIG, dataset.num_items_with_padding)
    package(
        model,
        directory,
        dataset,
        origin=Origin(role="student"),
        seed=0,
        extra={"train_seconds": 1.0},
    )
    return directory


def test_a_model_too_large_for_a_graph_teaches_and_is_not_served(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_GRAPH", 100)
    model, asked = build(CONFIG, dataset.num_items_with_padding), {"dataset": dataset, "seed": 0}
    report = package(model, tmp_path / "large", origin=Origin(role="teacher"), **asked)
    assert "latency_ms" not in report
    assert report["size_bytes"] == (tmp_path / "large" / "model.safetensors").stat().st_size
    package(model, tmp_path / "small", origin=Origin(role="compressed"), **asked)
    assert (tmp_path / "small" / "model.onnx").exists()


@pytest.fixture
def job(packaged, dataset_directory, tmp_path):
    """The evaluation of a copy of the model."""
    shutil.copytree(packaged, tmp_path / "student")
    return evaluate.Evaluate(model=tmp_path / "student", dataset=dataset_directory)


def read_report(job):
    return json.loads((job.model / "report.json").read_text())


def without_costs(report):
    return {name: value for name, value in report.items() if "@" in name or name == "mrr"}


def test_it_finds_what_the_stage_that_made_the_model_found(job, capsys):
    before = read_report(job)
    evaluate.run(job)
    after = read_report(job)
    assert after.keys() == before.keys()
    assert without_costs(after) == without_costs(before)
    assert after["train_seconds"] == 1.0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == [
        "model",
        "popularity",
        "last-item-markov",
        "student",
    ]
    assert "test, full-ranking, seen items removed: 60 users ranked" in lines[4]


def test_a_model_that_is_replaced_while_it_is_measured_keeps_its_own_report(job, monkeypatch):
    before = read_report(job)
    measured = evaluate.cost

    def replaced(*args):
        found = measured(*args)
        config = read_json(job.model / "config.json")
        write_json(job.model / "config.json", {**config, "role": "another"})
        return found

    monkeypatch.setattr(evaluate, "cost", replaced)
    with pytest.raises(ValueError, match="was replaced while it was measured"):
        evaluate.run(dataclasses.replace(job, baselines=False))
    assert read_report(job) == before


def test_validation_stands_beside_the_test_report(job):
    report = evaluate.run(dataclasses.replace(job, split="validation", baselines=False))
    assert read_report(job)["validation"] == report
    assert read_report(job)["split"] == "test"


def test_weights_without_a_graph_are_evaluated_by_pytorch(job):
    expected = read_report(job)
    (job.model / "model.onnx").unlink()
    (job.model / "report.json").unlink()
    seal_model(job.model)
    report = evaluate.run(dataclasses.replace(job, baselines=False))
    assert report["ndcg@10"] == pytest.approx(expected["ndcg@10"])
    assert report["size_bytes"] == (job.model / "model.safetensors").stat().st_size
    assert "latency_ms" not in report


def test_workers_find_the_same(job):
    evaluate.run(job)
    alone = read_report(job)
    evaluate.run(dataclasses.replace(job, num_workers=2, baselines=False))
    assert without_costs(read_report(job)) == without_costs(alone)


def run_command(*words):
    return command(evaluate.Evaluate.from_preset, evaluate.run, words)


def test_the_command_line(job, capsys):
    words = ["--model", str(job.model), "--dataset", str(job.dataset), "--no-baselines"]
    assert run_command(*words, "--keep-seen") == 0
    assert "seen items kept" in capsys.readouterr().out
    assert "test, seen items kept" in read_report(job)


def test_what_a_user_causes_ends_in_one_line(job, capsys):
    words = ["--dataset", str(job.dataset), "--model"]
    (job.model / "model.onnx").write_bytes(b"flipped")
    assert run_command(*words, str(job.model)) == 2
    assert run_command(*words, str(job.model / "nothing")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "is damaged" in lines[0]
    assert "is not a model directory" in lines[1]
