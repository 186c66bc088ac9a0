import pytest

from benchmarks import compression
from benchmarks.rows import Results, Subject
from jobs.presets import PRESETS
from jobs.recipes import parse_recipe
from recsys.compress import compress
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
    results.put(Subject("synthetic", "recsys", "the teacher; wide", 0), "c", unserved)
    assert compression.markdown(results.rows()).splitlines()[2:] == [
        "| the student | 390.6 KiB | 1.0 | 0.40 | 0.2000 | 100.0% | 1 |",
        "| `int8` | 195.3 KiB | 2.0 | 0.30 | 0.1900 | 95.0% | 1 |",
        "| the teacher; wide | 781.2 KiB | 1.0 | - | 0.2500 | 100.0% | 1 |",
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
