import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import compress, distill, ensemble, evaluate, pipeline, prepare, search, train
from jobs.command import command
from jobs.presets import PRESETS
from recsys.config import from_json, to_json
from recsys.models import ModelConfig, build

ROOT = Path(__file__).parents[2]
JOBS = [
    prepare.Prepare,
    train.Train,
    distill.Distill,
    compress.Compress,
    ensemble.Ensemble,
    evaluate.Evaluate,
    search.Search,
    pipeline.Pipeline,
]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name):
    preset = PRESETS[name]
    for config in (preset.teacher, preset.student):
        assert build(config, 10).config == config
        assert from_json(ModelConfig, to_json(config)) == config
    for job in JOBS:
        job.from_preset(preset, Path("runs") / name)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("words", [[], ["quickstart"], ["movielens-1m"]])
def test_every_command_parses(job, words):
    seen = []
    assert command(job.from_preset, seen.append, words) == 0
    assert isinstance(seen[0], job)


def test_flags_override_the_preset():
    seen = []
    words = ["movielens-1m", "--train.epochs", "3", "--model.width", "32"]
    assert command(train.Train.from_preset, seen.append, words) == 0
    assert seen[0].train.epochs == 3
    assert seen[0].model.width == 32


@pytest.mark.parametrize(("words", "expected"), [("3", 3), ("1 4", (1, 4))])
def test_workers_are_a_number_or_a_range(words, expected):
    seen = []
    for job in (train.Train, distill.Distill, compress.Compress):
        flags = ["quickstart", "--num-workers", *words.split()]
        assert command(job.from_preset, seen.append, flags) == 0
        assert seen[-1].num_workers == expected
    flags = ["quickstart", "--preset.num-workers", *words.split()]
    assert command(pipeline.Pipeline.from_preset, seen.append, flags) == 0
    assert seen[-1].preset.num_workers == expected


def test_an_unknown_flag_ends_in_code_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        command(train.Train.from_preset, print, ["--train.epoch", "3"])
    assert stopped.value.code == 2
    assert "epochs" in capsys.readouterr().err


def test_what_a_user_can_cause_ends_in_one_line(capsys):
    def fail(job):
        raise ValueError("the log\nis empty")

    assert command(train.Train.from_preset, fail, []) == 2
    assert capsys.readouterr().err == "error: the log is empty\n"


def test_ctrl_c_ends_in_code_130():
    def interrupt(job):
        raise KeyboardInterrupt

    assert command(train.Train.from_preset, interrupt, []) == 130


SLOW = """
import time
print("importing", flush=True)
time.sleep(60)
"""
HEEDS = """
import sys
sys.argv[0] = "-m"
from jobs.command import command
from jobs.train import Train
import os, signal, time
def run(job):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
sys.exit(command(Train.from_preset, run, []))
"""


@pytest.mark.parametrize("name", ["train", "serve", "submit"])
def test_ctrl_c_while_a_command_imports_says_nothing(tmp_path, name):
    for module in ("tyro", "argparse"):
        (tmp_path / f"{module}.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    words = [sys.executable, "-m", f"jobs.{name}"]
    with subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (-signal.SIGINT, "")


def test_ctrl_c_is_heeded_once_a_command_runs():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HEEDS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (130, "stopped; the same command goes on from here\n")


@pytest.mark.parametrize("run", [["--run", "runs/shop"], ["--run=runs/shop"]])
@pytest.mark.parametrize("preset", [[], ["amazon-beauty"]])
def test_a_run_directory_is_named_once_for_all_stages(preset, run):
    seen = []
    for job in (train.Train, distill.Distill, search.Search):
        assert command(job.from_preset, seen.append, [*preset, *run, "--train.epochs", "3"]) == 0
    assert command(pipeline.Pipeline.from_preset, seen.append, [*preset, *run]) == 0
    shop = Path("runs/shop")
    assert [job.output for job in seen] == [
        shop / "teacher",
        shop / "student",
        shop / "frontier",
        shop,
    ]
    assert seen[0].train.epochs == 3


def test_an_error_speaks_of_the_preset_that_is_meant(capsys):
    with pytest.raises(SystemExit):
        command(train.Train.from_preset, pytest.fail, ["amazon-beauty", "--model.width", "0"])
    said = capsys.readouterr().err
    assert "Error parsing model: width must be at least 1, not 0" in said
    assert "amazon-beauty" in said
    with pytest.raises(SystemExit):
        command(train.Train.from_preset, pytest.fail, ["amazon-beuty"])
    assert "amazon-beauty" in capsys.readouterr().err
