import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks import distill_losses, gap, students
from benchmarks.rows import Results, values_of
from benchmarks.students import Material
from jobs.command import command
from jobs.distill import Distill
from jobs.presets import PRESETS
from recsys.compress.graph import serving_graph
from recsys.files import read_json, write_json
from recsys.models import build

NUM_ROWS = 300
TEACHER = {
    "ndcg@10": 0.3,
    "hr@10": 0.5,
    "validation": {"ndcg@10": 0.3},
    "size_bytes": 400_000,
    "train_seconds": 10.0,
}


def parsed(words) -> Distill:
    jobs = []
    assert command(Distill.from_preset, jobs.append, words) == 0
    return jobs[0]


@pytest.mark.parametrize("flags", distill_losses.VARIANTS.values())
@pytest.mark.parametrize("dataset", ["synthetic", "amazon-beauty"])
def test_every_loss_parses_and_the_targets_hold_what_it_needs(dataset, flags):
    options = students.Options(dataset=dataset)
    job = parsed(students.student_words(options, flags, seed=3))
    job.distill.require(job.keep)
    assert job.train.seed == 3


def test_a_gpu_is_asked_for_by_name():
    options = students.Options(dataset="amazon-beauty", device="cuda", num_workers=0)
    job = parsed(students.student_words(options, (), seed=1))
    assert (job.train.device, job.num_workers, job.train.seed) == ("cuda", 0, 1)


def test_further_flags_are_of_every_student():
    options = students.Options(dataset="amazon-beauty", flags="--train.epochs 3 --train.no-compile")
    job = parsed(students.student_words(options, ("--model.width", "24"), seed=1))
    assert (job.train.epochs, job.train.compile, job.model.width) == (3, False, 24)


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The words of each training that was asked for, none of which happens."""
    words = []

    def distill(arguments, made, output, alone=None):
        words.append(shlex.join(arguments))
        report = {**TEACHER, "ndcg@10": 0.25 + parsed(arguments).train.seed / 10}
        for directory, ndcg in ((output, report["ndcg@10"]), (alone, 0.1)):
            if directory:
                directory.mkdir(parents=True, exist_ok=True)
                write_json(directory / "report.json", {**report, "ndcg@10": ndcg})
        return report

    write_json(tmp_path / "report.json", TEACHER)
    made = Material(dataset=tmp_path, teacher=tmp_path, targets=tmp_path)
    for module in (gap, distill_losses):
        monkeypatch.setattr(module, "RUNS", tmp_path)

    def compress(_, made, student, output):
        report = read_json(student / "report.json")
        return {**report, "size_bytes": report["size_bytes"] // 4}

    monkeypatch.setattr(students, "distill", distill)
    monkeypatch.setattr(students, "compress", compress)
    monkeypatch.setattr(students, "material", lambda _: made)
    return words


def test_losses_are_measured_once(trained, tmp_path):
    results = Results("distill_losses", tmp_path)
    options = distill_losses.Options(dataset="synthetic", only=("alone", "kl"), seeds=(0, 1))
    for _ in range(2):
        distill_losses.measure(results, options)
    assert len(trained) == 4
    assert values_of(results.rows(), "ndcg@10", variant="alone") == [0.1, 0.1]
    lines = distill_losses.markdown(results.rows()).splitlines()
    assert lines[-1] == "| kl | 0.3000 ± 0.0707 | 0.5000 ± 0.0000 | 2 |"


def test_the_gap_is_of_means_over_seeds(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(gap.Dataset, "open", lambda _: SimpleNamespace(num_items_with_padding=9))
    teacher = SimpleNamespace(config=SimpleNamespace(width=96))
    monkeypatch.setattr(gap, "load_model", lambda _: teacher)
    monkeypatch.setattr(gap, "RESULTS", tmp_path)
    results = Results("gap", tmp_path)
    # A student as wide as the teacher has less than a quarter of its bytes.
    options = gap.Options(dataset="synthetic", shares=(0.05, 0.25, 0.5), seeds=(0, 1))
    for _ in range(2):
        gap.measure(results, options)
    shapes = [parsed(shlex.split(words)).model for words in trained]
    assert [shape.width for shape in shapes] == [40, 40, 96, 96] * 2
    assert [shape.dropout for shape in shapes] == [0.1, 0.3] * 4
    assert "5% | 97.7 KiB | 0.1000 ± 0.0000 | 0.3000 ± 0.0707 | 0.3000 | 100% | 2 |" in (
        gap.markdown(results.rows())
    )
    assert (tmp_path / "gap-synthetic.png").stat().st_size > 5000


def test_the_better_model_is_that_on_validation(tmp_path):
    for name, test, validation in (("a", 0.3, 0.1), ("b", 0.1, 0.2)):
        (tmp_path / name).mkdir()
        report = {"ndcg@10": test, "validation": {"ndcg@10": validation}}
        write_json(tmp_path / name / "report.json", report)
    assert gap.better([tmp_path / "a", tmp_path / "b"]) == tmp_path / "b"


def test_the_gap_by_hand():
    assert gap.gap_closed(0.85, 0.70, 0.90) == pytest.approx(0.75)
    assert gap.gap_closed(0.2, 0.3, 0.3) == float("inf")


@pytest.mark.parametrize("preset", ["quickstart", "amazon-beauty"])
def test_the_widest_student_fits_and_the_next_does_not(preset):
    student = PRESETS[preset].student
    found = gap.largest(student, NUM_ROWS, 100_000, 512)
    wider = gap.WIDTHS[gap.WIDTHS.index(found.width) + 1]
    sizes = [
        serving_graph(
            config,
            {k: w.numpy() for k, w in build(config, NUM_ROWS).state_dict().items()},
            gap.PRECISION,
        ).ByteSize()
        for config in (found, gap.shaped(student, wider, student.num_layers, gap.EXPANSION))
    ]
    assert sizes[0] <= 100_000 < sizes[1]
    assert gap.largest(student, NUM_ROWS, 100_000, found.width - 1).width < found.width
    flags = gap.shape_flags(found)
    assert parsed([preset, *flags]).model == replace(found, dropout=student.dropout)


def test_a_size_that_no_student_has_is_refused():
    with pytest.raises(ValueError, match=r"no student has at most 1\.0 KiB"):
        gap.largest(PRESETS["quickstart"].student, NUM_ROWS, 1000, 512)
