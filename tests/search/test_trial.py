"""Trials and the search around them: killed, twice at a time, and choosing without searching."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import distill, train
from jobs.search import Search
from jobs.search import run as run_search
from recsys.compress import Quantize
from recsys.distill.answers import LiveTeacher, TargetsConfig
from recsys.distill.objective import DistillConfig
from recsys.files import fingerprint
from recsys.models import TransformerConfig
from recsys.search import trial
from recsys.search.space import ChooseConfig, Point, SearchConfig
from recsys.search.trial import ROW, Material, measure
from recsys.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
MODEL = TransformerConfig(
    width=16, num_layers=1, num_heads=1, head_width=16, feed_forward_width=16, max_length=12
)
TRAIN = TrainConfig(epochs=1, batch_rows=4, learning_rate=1e-2, num_threads=1)
POINT = Point(model=MODEL, distill=DistillConfig(), recipe=(Quantize(),))


@pytest.fixture(scope="module")
def directory(dataset_directory):
    """A run directory with a teacher, its targets and a student."""
    directory = dataset_directory.parent
    teacher, targets = directory / "teacher", directory / "targets"
    train.run(
        train.Train(
            dataset=dataset_directory, output=teacher, model=MODEL, train=TRAIN, num_workers=0
        )
    )
    distill.run(
        distill.Distill(
            dataset=dataset_directory,
            teacher=teacher,
            targets=targets,
            output=directory / "student",
            model=MODEL,
            keep=TargetsConfig(top_k=5),
            distill=DistillConfig(),
            train=TRAIN,
        )
    )
    return directory


@pytest.fixture
def material(directory):
    return Material(
        dataset=directory / "dataset",
        teacher=directory / "targets",
        start="auto",
        start_from=directory / "teacher",
        train=TRAIN,
    )


def test_a_point_is_measured_once_and_says_what_it_is(material, tmp_path):
    row = measure(POINT, material, tmp_path)
    before = (tmp_path / POINT.name / "model.onnx").stat().st_mtime_ns
    assert measure(POINT, material, tmp_path) == row
    assert (tmp_path / POINT.name / "model.onnx").stat().st_mtime_ns == before
    assert row["report"]["export"]["precision"] == "int8"
    assert row["report"]["train_seconds"] >= 0  # rounded to a tenth
    assert not (tmp_path / POINT.name / "checkpoints").exists()


@pytest.mark.parametrize("start", ["auto", "fresh"])
def test_a_trial_starts_as_the_teacher_where_it_can(
    start, material, directory, tmp_path, monkeypatch
):
    starts = []

    def fit(task, checkpoints):
        starts.append(task.initial and (task.initial / "model.safetensors").exists())
        return trained(task, checkpoints)

    trained = trial.fit
    monkeypatch.setattr(trial, "fit", fit)
    measure(POINT, replace(material, start=start), tmp_path)
    parents = json.loads((tmp_path / POINT.name / "config.json").read_text())["parents"]
    if start == "auto":
        assert starts == [True]
        assert parents["teacher"] == fingerprint(directory / "teacher")
    else:
        assert starts == [None]
        assert "teacher" not in parents


def test_a_trial_may_ask_the_teacher_live(material, directory, tmp_path):
    live = LiveTeacher(directory / "teacher", TargetsConfig(top_k=5))
    row = measure(POINT, replace(material, teacher=live), tmp_path)
    assert row["report"]["ndcg@10"] > 0
    parents = json.loads((tmp_path / POINT.name / "config.json").read_text())["parents"]
    assert parents["teacher"] == fingerprint(directory / "teacher")


def test_the_same_point_twice_at_a_time_is_measured_once(material, tmp_path, monkeypatch):
    built = []

    def build(point, material, directory):
        built.append(1)
        time.sleep(0.3)
        report = {"size_bytes": 1, "latency_ms": {"batch_1": {"p50": 1.0}}}
        return {**report, "validation": {"ndcg@10": 0.5}}

    monkeypatch.setattr(trial, "_build", build)
    rows = []
    threads = [
        threading.Thread(target=lambda: rows.append(measure(POINT, material, tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert len(built) == 1


def a_search(directory: Path, output: Path, **choose) -> Search:
    return Search(
        dataset=directory / "dataset",
        teacher=directory / "teacher",
        targets=directory / "targets",
        models=(directory / "student",),
        output=output,
        chosen=output.parent / "chosen",
        student=MODEL,
        distill=DistillConfig(soft="list"),
        train=TRAIN,
        search=SearchConfig(
            num_trials=3, max_concurrent=1, epochs=1, widths=(8, 12), num_layers=(1,)
        ),
        choose=ChooseConfig(**choose),
    )


SEARCH = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trial import a_search, run_search
run_search(a_search(Path({directory!r}), Path({output!r})))
"""


def start_search(directory: Path, output: Path) -> subprocess.Popen:
    script = SEARCH.format(
        tests=str(Path(__file__).parent), directory=str(directory), output=str(output)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


def stop_search(directory: Path, output: Path, number: int, how: signal.Signals) -> int:
    """Stops a search once `number` points are measured; returns its exit status."""
    process = start_search(directory, output)
    points = output.with_name(f"{output.name}.partial") / "points"
    deadline = time.monotonic() + 120
    while len(list(points.glob(f"*/{ROW}"))) < number and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    return process.wait(120)


def test_a_killed_search_keeps_its_trials_and_another_choice_searches_nothing(
    directory, tmp_path, capsys
):
    output = tmp_path / "frontier"
    assert stop_search(directory, output, 1, signal.SIGINT) != 0
    assert not output.exists()
    assert stop_search(directory, output, 2, signal.SIGKILL) == -signal.SIGKILL
    points = tmp_path / "frontier.partial" / "points"
    kept = {path: path.stat().st_mtime_ns for path in points.glob(f"*/{ROW}")}
    assert len(kept) >= 2
    assert not output.exists()
    assert start_search(directory, output).wait(180) == 0
    points = pq.read_table(output / "points.parquet").to_pylist()
    names = [point["name"] for point in points]
    configs = [json.loads(point["config"]) for point in points if point["name"] != "student"]
    assert {config["distill"]["soft"] for config in configs} == {"list"}
    assert {path.parent.name for path in kept} < set(names)
    assert "student" in names
    assert not (output / "points").exists()
    (on_front, *_) = (point["name"] for point in points if point["on_front"])
    for asked, expected in (("smallest", None), (on_front, on_front)):
        chosen = run_search(a_search(directory, output, point=asked, tolerance=1.0))
        marked = pq.read_table(output / "points.parquet", filters=[("chosen", "=", True)])
        (name,) = marked["name"].to_pylist()
        assert name == (expected or name)
        (ours, theirs) = (path / "model.onnx" for path in (chosen, output / "models" / name))
        assert ours.read_bytes() == theirs.read_bytes()
        assert "search: up to date" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no point 'w9'"):
        run_search(a_search(directory, output, point="w9"))
