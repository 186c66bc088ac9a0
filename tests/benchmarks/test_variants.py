import shlex

import pytest

from benchmarks import ablation, teacher, variants
from benchmarks.rows import Results, values_of
from jobs.command import command
from jobs.distill import Distill
from jobs.presets import PRESETS
from recsys.files import write_json

REPORT = {
    "ndcg@10": 0.2,
    "hr@10": 0.4,
    "validation": {"ndcg@10": 0.25},
    "train_seconds": 10.0,
}
CASES = [
    (dataset, name)
    for module in (teacher, ablation)
    for dataset, of_dataset in module.VARIANTS.items()
    for name in of_dataset
]


@pytest.mark.parametrize("module", [teacher, ablation])
def test_every_variant_parses_and_the_preset_comes_first(module):
    for dataset, of_dataset in module.VARIANTS.items():
        chosen = variants.different(dataset, of_dataset)
        assert next(iter(chosen)) == "preset"


def test_a_variant_that_changes_nothing_is_left_out():
    chosen = variants.different(
        "movielens-1m",
        {"preset": (), "width=192": ("--model.width", "192"), "width=8": ("--model.width", "8")},
    )
    assert list(chosen) == ["preset", "width=8"]


@pytest.mark.parametrize("dataset", ["synthetic", "movielens-1m", "amazon-sports"])
def test_a_student_of_its_teachers_shape_and_training(dataset):
    preset, asked = PRESETS[variants.preset_name(dataset)], []
    flags = variants.teacher_as_student(dataset).items()
    words = [variants.preset_name(dataset), *(word for flag in flags for word in flag)]
    assert command(Distill.from_preset, asked.append, words) == 0
    assert (asked[0].model, asked[0].train) == (preset.teacher, preset.train)


@pytest.fixture
def trained(monkeypatch):
    """The words of each training that was asked for, none of which happens."""
    words = []

    def train(arguments, dataset, output):
        words.append(shlex.join(arguments))
        seed = int(arguments[-1])
        return {**REPORT, "ndcg@10": REPORT["ndcg@10"] + seed / 100}

    monkeypatch.setattr(variants, "train", train)
    monkeypatch.setattr(variants, "prepare", lambda dataset, log: None)
    return words


def test_what_is_measured_is_not_trained_again(trained, tmp_path):
    results = Results("ablation", tmp_path)
    some = {"preset": (), "dropout=0.1": ("--model.dropout", "0.1")}
    options = variants.Options(dataset="synthetic", seeds=(0, 1))
    variants.measure(results, options, some)
    assert trained == [
        "quickstart --train.seed 0",
        "quickstart --model.dropout 0.1 --train.seed 0",
        "quickstart --train.seed 1",
        "quickstart --model.dropout 0.1 --train.seed 1",
    ]
    variants.measure(results, options, some)
    assert len(trained) == 4
    variants.measure(results, variants.Options(dataset="synthetic", seeds=(2,)), some)
    assert len(trained) == 6
    variants.measure(results, variants.Options(dataset="synthetic", seeds=(2,), again=True), some)
    assert len(trained) == 8
    assert values_of(results.rows(), "ndcg@10", variant="preset") == pytest.approx(
        [0.2, 0.21, 0.22]
    )


def test_the_table_has_mean_and_spread_and_the_command(trained, tmp_path):
    results = Results("ablation", tmp_path)
    variants.measure(results, variants.Options(dataset="synthetic"), {"preset": ()})
    last = variants.markdown(results.rows()).splitlines()[-1]
    assert last == (
        "| preset | 0.2100 ± 0.0100 | 0.4000 ± 0.0000 | 3 | 10 "
        "| `python -m jobs.train quickstart` |"
    )


def test_the_seeds_of_a_variant_are_an_ensemble_too(trained, tmp_path, monkeypatch):
    asked = []

    def job(name, words, **places):
        asked.append([name, *words])
        output = places["output"]
        output.mkdir(parents=True)
        write_json(output / "report.json", {**REPORT, "ndcg@10": 0.3})

    monkeypatch.setattr(variants, "job", job)
    monkeypatch.setattr(variants, "RUNS", tmp_path)
    results = Results("teacher", tmp_path)
    other = tmp_path / "past times" / "0"
    options = variants.Options(dataset="synthetic", seeds=(0, 1), ensemble=True, members=(other,))
    members = [tmp_path / "synthetic" / "teacher" / "preset" / seed for seed in "01"] + [other]
    for member in members:
        member.mkdir(parents=True)
        write_json(member / "report.json", REPORT)
    for _ in range(2):
        variants.measure(results, options, {"preset": ()})
    words = ["--members", *map(str, members)]
    assert asked == [
        ["ensemble", "quickstart", *words],
        ["ensemble", "quickstart", "--weights", "stacked", *words],
    ]
    assert results.rows()[-1].command.endswith("--weights stacked --members 0 1 'past times'")
    for name in ("preset, ensemble of 3", "preset, ensemble of 3, stacked"):
        assert values_of(results.rows(), "ndcg@10", variant=name) == [0.3]
        assert values_of(results.rows(), "train_seconds", variant=name) == [30.0]
