"""The command: kind flags, one line of error, nothing done twice."""

import pytest

from jobs.command import command
from jobs.prepare import Prepare, run
from recsys.data.sequences import Dataset
from recsys.files import read_json

HEAD = "user_id,item_id,timestamp\n"
ROWS = "".join(f"u{n % 3},i{n % 4},{n}\n" for n in range(30))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEAD + ROWS)
    return path


def _command(*words) -> int:
    return command(Prepare.from_preset, run, [str(word) for word in words])


@pytest.mark.parametrize("preset", ["quickstart", "movielens-1m", "amazon-beauty"])
@pytest.mark.usefixtures("ray_started")
def test_a_log_that_is_given_is_used_and_nothing_is_done_twice(preset, log, tmp_path, capsys):
    words = (preset, "--log", log, "--output", tmp_path / "dataset")
    assert _command(*words) == 0
    assert "3 users, 4 items, 30 interactions" in capsys.readouterr().out
    assert read_json(tmp_path / "dataset/manifest.json")["source"] == "log"
    assert _command(*words) == 0
    assert "prepare: up to date" in capsys.readouterr().out
    log.write_text(HEAD + ROWS + "new,i1,99\n")
    assert _command(*words) == 0
    assert "4 users" in capsys.readouterr().out


@pytest.mark.usefixtures("ray_started")
def test_the_split_is_a_flag(log, tmp_path):
    output = tmp_path / "dataset"
    words = ("--log", log, "--split", "global-time-cut", "--output", output)
    assert _command(*words) == 0
    assert read_json(output / "manifest.json")["split"]["kind"] == "GlobalTimeCut"
    assert Dataset.open(output).train_length_U.sum() == 24
    assert _command(*words, "--test-fraction", "0.4") == 0
    assert Dataset.open(output).train_length_U.sum() == 15


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", HEAD + ",a,1\nu,a,now\n", "2 bad rows"),
        ("log.csv", "", "is empty"),
        ("log.csv", "user_id,item_id\nu,a\n", "no column 'timestamp'"),
        ("log.parquet", "PAR1 cut off", "cannot be read"),
        ("log.txt", "u a 1", "no known format"),
        ("log.csv", HEAD, "no interaction is left"),
    ],
)
@pytest.mark.usefixtures("ray_started")
def test_what_a_user_can_cause_is_one_line(tmp_path, capfd, name, content, message):
    (tmp_path / name).write_text(content)
    capfd.readouterr()
    assert _command("--log", tmp_path / name, "--output", tmp_path / "dataset") == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["amazon-beauty"], "no log: say where it is with --log"),
        (["--items", "items.csv"], "an item table without a log"),
        (["--log", "nowhere/log.csv"], "nowhere/log.csv does not exist"),
        (["--k-core", "-1"], "k_core must be at least 0"),
        (["--test-fraction", "1"], "leave nothing to train on"),
        (["--order-column", "timestamp"], "'timestamp' cannot be two things"),
        (["--cold-items", "1"], "cold_items must be in [0, 1)"),
    ],
)
def test_flags_that_cannot_be_are_one_line(words, message, tmp_path, capfd):
    assert _command(*words, "--output", tmp_path / "dataset") == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_flags_are_short(capsys):
    with pytest.raises(SystemExit):
        _command("quickstart", "--help")
    text = capsys.readouterr().out
    for flag in (" --log ", " --items ", " --on-bad-rows ", " --split ", " --order-column "):
        assert flag in text
