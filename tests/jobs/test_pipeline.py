"""The whole path at small size: once, again, and after the driver was killed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.summary import FOLDERS, markdown, tidy
from jobs import pipeline, train
from jobs.command import command
from jobs.presets import PRESETS
from recsys.checkpoint import load_weights, verify_model
from recsys.data.schema import PrepareConfig
from recsys.data.synthetic import SyntheticConfig
from recsys.distill.answers import TargetsConfig
from recsys.distill.objective import DistillConfig
from recsys.files import read_json
from recsys.search.space import SearchConfig
from recsys.serve.recommender import Recommender

ROOT = Path(__file__).parents[2]
SMALL = SyntheticConfig(
    num_users=200, num_items=300, num_families=20, num_topics=5, mean_length=12, seed=1
)


def small_preset(num_workers: int):
    quick = PRESETS["quickstart"]
    return replace(
        quick,
        prepare=PrepareConfig(synthetic=SMALL),
        teacher=replace(quick.teacher, width=16, num_layers=1, max_length=16),
        train=replace(quick.train, epochs=2),
        student=replace(quick.student, max_length=16),
        train_student=replace(quick.train_student, epochs=2),
        search=SearchConfig(num_trials=2, epochs=1, widths=(8,), num_layers=(1,)),
        num_workers=num_workers,
    )


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline") / "run"
    pipeline.run(pipeline.Pipeline(preset=small_preset(0), output=directory))
    return directory


def test_it_leaves_all_stages_and_a_summary(run_directory):
    summary = read_json(run_directory / "summary.json")
    names = [row["name"] for row in summary["rows"]]
    models = ["teacher", "student-alone", "student", "compressed", "chosen"]
    assert names == ["popularity", "last-item-markov", *models]
    assert summary["best_possible"]["ndcg@10"] > 0
    assert (run_directory / "frontier" / "frontier.html").stat().st_size > 10_000
    assert (run_directory / "frontier" / "points.parquet").exists()
    sizes = {row["name"]: row["size_bytes"] for row in summary["rows"]}
    assert sizes["compressed"] < sizes["student"] < sizes["teacher"]
    for name in models:
        verify_model(run_directory / name)
    for name in ("teacher", "student"):
        assert read_json(run_directory / name / "report.json")["peak_memory_mib"] > 100


def test_flags_of_the_log_and_the_split_reach_the_preparation():
    seen = []
    words = ["movielens-1m", "--preset.prepare.log", "a.zip", "--split", "global-time-cut"]
    assert command(pipeline.Pipeline.from_preset, seen.append, words) == 0
    prepare = pipeline._with_flags(seen[0]).prepare
    assert (prepare.log, prepare.source) == ("a.zip", "movielens-1m")
    assert prepare.split == "global-time-cut"
    with pytest.raises(ValueError, match="item table without a log"):
        pipeline._with_flags(replace(seen[0], preset=PRESETS["quickstart"], items="b.csv"))


SEEN_ASKED = {
    "keep": TargetsConfig(leave_out_seen=False),
    "distill": DistillConfig(leave_out_seen=False),
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill": DistillConfig(soft="probabilities")}, "write them with --keep"),
        (SEEN_ASKED, "--preset.loss.no-leave-out-seen, too"),
        ({"live": True, "student": replace(small_preset(0).student, max_length=999)}, "reads"),
    ],
)
def test_what_distillation_would_refuse_is_refused_before_a_teacher_is_trained(
    tmp_path, settings, message
):
    asked = replace(small_preset(0), **settings)
    with pytest.raises(ValueError, match=message):
        pipeline.run(pipeline.Pipeline(preset=asked, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_results_are_kept_by_a_command(run_directory, tmp_path, monkeypatch):
    summary = read_json(run_directory / "summary.json")
    command = "python -m jobs.pipeline movielens-1m --log /some/where/log.parquet --items=a/b.csv"
    rows = tidy(summary, "movielens-1m", FOLDERS.sub("", command))
    assert {row["command"] for row in rows} == {
        "python -m jobs.pipeline movielens-1m --log log.parquet --items=b.csv"
    }
    assert {"ndcg@10", "hr@10", "size_bytes", "latency_ms_p50"} < {row["metric"] for row in rows}
    assert summary["command"] in markdown(summary, "synthetic", summary["command"])


def test_the_chosen_model_recommends(run_directory):
    recommender = Recommender(run_directory / "chosen")
    (answer,) = recommender.recommend([["1", "2", "3"]], k=5)
    assert len({item["item_id"] for item in answer["items"]} - {"1", "2", "3"}) == 5


def test_the_same_command_again_does_nothing(run_directory, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_directory.rglob("*.safetensors")}
    pipeline.run(pipeline.Pipeline(preset=small_preset(0), output=run_directory))
    assert capsys.readouterr().out.count("up to date") == 8
    assert {path: path.stat().st_mtime_ns for path in run_directory.rglob("*.safetensors")} == (
        before
    )


def training(run_directory: Path, output: Path, num_workers: int) -> train.Train:
    """Returns a training that is long enough to be killed in: workers take their time to agree on a
    checkpoint."""
    preset, epochs = small_preset(num_workers), 4 if num_workers else 12
    job = train.Train.from_preset(preset, run_directory)
    settings = replace(preset.train, epochs=epochs, checkpoint_every=3)
    return replace(job, train=settings, output=output)


TRAIN = """
import sys
from pathlib import Path
from jobs import train
sys.path.insert(0, {tests!r})
from test_pipeline import training
train.run(training(Path({directory!r}), Path({output!r}), {num_workers}))
"""


def start_training(run_directory: Path, output: Path, num_workers: int) -> subprocess.Popen:
    script = TRAIN.format(
        tests=str(Path(__file__).parent),
        directory=str(run_directory),
        output=str(output),
        num_workers=num_workers,
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_driver_goes_on_and_ends_with_the_same_weights(
    run_directory, tmp_path, num_workers
):
    train.run(training(run_directory, tmp_path / "undisturbed", num_workers))
    process = start_training(run_directory, tmp_path / "killed", num_workers)
    deadline = time.monotonic() + 180
    partial = tmp_path / "killed.partial"
    while process.poll() is None and not any(partial.rglob("checkpoint.pt")):
        assert time.monotonic() < deadline, "it has not begun"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "killed").exists()
    assert start_training(run_directory, tmp_path / "killed", num_workers).wait(120) == 0
    expected = load_weights(tmp_path / "undisturbed")
    for name, weight in load_weights(tmp_path / "killed").items():
        np.testing.assert_array_equal(weight, expected[name])
