from dataclasses import replace

import pytest

from benchmarks import compression
from benchmarks.rows import Results, Subject
from benchmarks.students import Material
from jobs.command import command
from jobs.compress import Compress
from jobs.distill import Distill
from jobs.presets import PRESETS
from jobs.recipes import parse_recipe
from jobs.train import Train
from recsys.compress import compress
from recsys.config import to_json
from recsys.files import STAGE_FILE, write_json
from recsys.models import TransformerConfig, build

WHOLE = {"ndcg@10": (0.2, ""), "size_bytes": (400_000.0, "bytes"), "latency_p50": (0.4, "ms")}
HALF = {"ndcg@10": (0.19, ""), "size_bytes": (200_000.0, "bytes"), "latency_p50": (0.3, "ms")}


@pytest.mark.parametrize("preset", ["quickstart", "movielens-1m", "amazon-beauty"])
def test_every_recipe_fits_the_preset_s_student_and_makes_it_smaller(preset):
    config = PRESETS[preset].student
    assert isinstance(config, TransformerConfig)
    student = build(config, 900)
    count = sum(p.numel() for p in student.parameters())
    histories = [[1, 2, 3], [4, 5]]
    for recipe in compression.recipes(config):
        recipe = parse_recipe(recipe.split())
        smaller, precision = compress(
            student, recipe, histories=histories, recover=lambda model, *_: model
        )
        parameters = sum(p.numel() for p in smaller.parameters())
        shorter = smaller.config.max_length < config.max_length
        assert parameters < count or precision != "float32" or shorter


def test_rows_are_shares_of_their_teacher(tmp_path):
    results = Results("compression", tmp_path)
    rows = {"the student": WHOLE, "int8": HALF, "the student; wide": HALF, "int8; wide": HALF}
    for variant, values in rows.items():
        results.put(Subject("synthetic", "recsys", variant, 0), "a", values)
    unserved = {"ndcg@10": (0.25, ""), "size_bytes": (800_000.0, "bytes")}
    unserved |= {compression.LOW: (0.24, ""), compression.HIGH: (0.26, "")}
    results.put(Subject("synthetic", "recsys", "the teacher; wide", 0), "c", unserved)
    assert compression.markdown(results.rows()).splitlines()[2:] == [
        "| the student | 390.6 KiB | 1.0 | 0.40 | 0.2000 | 100.0% | 1 |",
        "| `int8` | 195.3 KiB | 2.0 | 0.30 | 0.1900 | 95.0% | 1 |",
        "| the teacher; wide | 781.2 KiB | 1.0 | - | 0.2500 (0.2400-0.2600) | 100.0% | 1 |",
        "| the student; wide | 195.3 KiB | 4.0 | 0.30 | 0.1900 | 76.0% | 1 |",
        "| `int8`; wide | 195.3 KiB | 4.0 | 0.30 | 0.1900 | 76.0% | 1 |",
    ]


def test_rows_without_a_teacher_are_shares_of_the_student(tmp_path):
    results = Results("compression", tmp_path)
    for seed in (0, 1):
        results.put(Subject("synthetic", "recsys", compression.STUDENT, seed), "a", WHOLE)
        results.put(Subject("synthetic", "recsys", "prune-heads=1 int8", seed), "b", HALF)
    lines = compression.markdown(results.rows()).splitlines()
    assert lines[2] == "| the student | 390.6 KiB | 1.0 | 0.40 | 0.2000 ± 0.0000 | 100.0% | 2 |"
    assert lines[3] == (
        "| `prune-heads=1 int8` | 195.3 KiB | 2.0 | 0.30 | 0.1900 ± 0.0000 | 95.0% | 2 |"
    )


def write_stage(directory, name, config, **inputs):
    directory.mkdir()
    record = {"stage": name, "config": to_json(config), "inputs": inputs, "fingerprint": name}
    write_json(directory / STAGE_FILE, record)


@pytest.mark.parametrize(
    ("name", "live", "kept", "asks"),
    [
        ("movielens-1m", False, ["--keep.vectors"], []),
        ("movielens-1m", True, [], ["--keep.vectors", "--live"]),
        ("amazon-multi", False, ["--keep.vectors"], ["--no-live"]),
        ("amazon-multi", True, [], ["--keep.vectors"]),
    ],
)
def test_a_student_that_is_given_is_named_by_the_command_that_made_it(
    tmp_path, name, live, kept, asks
):
    preset = PRESETS[name]
    train = replace(preset.train_student, epochs=3, compile=False)
    shape, keep = replace(preset.student, width=96), replace(preset.keep, vectors=True)
    asked = keep if live else None
    made_with = (shape, preset.distill, train, 0, "auto", asked)
    write_stage(tmp_path / "targets", "targets", keep)
    answers = {} if live else {"targets": "targets"}
    write_stage(tmp_path / "student", "distill", made_with, **answers)
    flags = compression.flags_of(tmp_path / "student", tmp_path / "targets", preset)
    assert flags == [
        *("--model.width", "96", "--distill.soft", preset.distill.soft, *kept),
        *("--train.epochs", "3", "--train.no-compile"),
        *(*asks, "--start", "auto", "--num-workers", "0"),
    ]
    jobs = []
    assert command(Distill.from_preset, jobs.append, [name, *flags]) == 0
    assert (jobs[0].model, jobs[0].train) == (shape, train)
    assert (jobs[0].live, jobs[0].keep, jobs[0].num_workers) == (live, keep, 0)


@pytest.mark.parametrize("name", ["amazon-beauty", "amazon-multi"])
@pytest.mark.parametrize("live", [False, True])
def test_recovery_listens_as_the_student_that_is_given_did(tmp_path, monkeypatch, name, live):
    preset = PRESETS[name]
    distill = replace(preset.distill, soft="kl", soft_weight=0.8)
    keep = replace(preset.keep, top_k=9) if live else preset.keep
    made_with = (preset.student, distill, preset.train_student, 0, "auto", keep if live else None)
    write_stage(tmp_path / "targets", "targets", preset.keep)
    write_stage(tmp_path / "student", "distill", made_with, targets="targets")
    report = {
        "ndcg@10": 0.2,
        "ndcg@10_interval": [0.1, 0.3],
        "size_bytes": 4,
        "latency_ms": {"batch_1": {"p50": 0.1}},
    }
    write_json(tmp_path / "student" / "report.json", report)
    monkeypatch.setattr(compression, "load_model", lambda _: build(preset.student, 9))
    asked = []
    monkeypatch.setattr(
        compression.students, "compress", lambda words, *_: asked.append(words) or report
    )
    options = compression.Options(
        dataset=name, student=tmp_path / "student", seeds=(0,), only=("int4+3",)
    )
    made = Material(dataset=tmp_path, teacher=tmp_path, targets=tmp_path / "targets")
    compression.measure_student(Results("compression", tmp_path), options, made, 0)
    jobs = []
    assert command(Compress.from_preset, jobs.append, asked[0]) == 0
    assert (jobs[0].distill, jobs[0].live, jobs[0].keep) == (distill, live, keep)
    flagged = replace(options, flags="--train.epochs 3")
    with pytest.raises(ValueError, match="leave out --student"):
        compression.measure_student(Results("compression", tmp_path), flagged, made, 0)


def test_answers_that_a_student_has_not_learnt_from_are_refused(tmp_path):
    preset = PRESETS["movielens-1m"]
    made_with = (preset.student, preset.distill, preset.train_student, 0, "auto", None)
    write_stage(tmp_path / "student", "distill", made_with, targets="of another")
    write_stage(tmp_path / "targets", "targets", preset.keep)
    with pytest.raises(ValueError, match="has learnt from other answers: give its own"):
        compression.flags_of(tmp_path / "student", tmp_path / "targets", preset)


def test_a_teacher_that_is_given_is_named_by_the_command_that_made_it(tmp_path):
    preset = PRESETS["amazon-beauty"]
    teacher = replace(preset.teacher, content=("text",))
    made_with = (teacher, replace(preset.train, epochs=3), preset.loss, (2, 8))
    write_stage(tmp_path / "one", "train", made_with)
    words = compression.teacher_words(tmp_path / "one", "amazon-beauty")
    assert words[:2] == ["jobs.train", "amazon-beauty"]
    jobs = []
    assert command(Train.from_preset, jobs.append, words[1:]) == 0
    assert (jobs[0].model, jobs[0].train.epochs, jobs[0].num_workers) == (teacher, 3, (2, 8))
    members = {"dataset": "d", "member-0": "a", "member-1": "b"}
    write_stage(tmp_path / "two", "ensemble", ("stacked", 0), **members)
    assert compression.teacher_words(tmp_path / "two", "amazon-beauty") == [
        *("jobs.ensemble", "amazon-beauty", "--weights", "stacked", "--members", "0", "1")
    ]


def test_one_student_is_not_counted_as_several(tmp_path):
    with pytest.raises(ValueError, match="give it, by --seeds 0"):
        compression.Options(dataset="movielens-1m", student=tmp_path)
