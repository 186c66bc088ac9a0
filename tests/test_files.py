import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from recsys.files import fingerprint, hash_of, read_json, run_stage, write_json


def work(output: Path, config: object = 1, inputs: dict | None = None) -> bool:
    def build(directory: Path) -> None:
        (directory / "result").write_text("whole")

    return run_stage(output, name="work", config=config, inputs=inputs or {}, build=build)


def test_stage_runs_once_and_again_for_other_settings(tmp_path, capsys):
    calls = []

    def build(directory: Path) -> None:
        calls.append(1)
        (directory / "result").write_text("whole")

    def run(config):
        output = tmp_path / "out"
        return run_stage(output, name="toy", config=config, inputs={"a": "1"}, build=build)

    assert run({"x": 1})
    assert not run({"x": 1})
    assert "up to date" in capsys.readouterr().out
    assert run({"x": 2})
    assert len(calls) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_interrupted_stage_leaves_no_output_and_finds_its_parts_again(tmp_path):
    output = tmp_path / "out"
    found = []

    def build(directory: Path) -> None:
        found.append((directory / "part").exists())
        (directory / "part").write_text("half")
        if len(found) == 1:
            raise KeyboardInterrupt

    def run(config):
        return run_stage(output, name="toy", config=config, inputs={}, build=build)

    with pytest.raises(KeyboardInterrupt):
        run({"x": 1})
    assert not output.exists()
    assert run({"x": 1})
    assert found == [False, True]


def test_parts_of_other_work_are_not_used(tmp_path):
    output = tmp_path / "out"

    def fail(directory: Path) -> None:
        (directory / "part").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(output, name="toy", config=1, inputs={}, build=fail)
    found = []
    run_stage(
        output,
        name="toy",
        config=2,
        inputs={},
        build=lambda directory: found.append((directory / "part").exists()),
    )
    assert found == [False]


def test_what_another_process_is_writing_is_left_to_it(tmp_path):
    output = tmp_path / "out"

    def second(directory: Path) -> None:
        pytest.fail("two write at a time")

    def meet(directory: Path) -> None:
        (directory / "part").write_text("half")
        for config in (1, 2):  # the same work, and other work
            with pytest.raises(ValueError, match=r"another process is writing .*out.partial"):
                run_stage(output, name="toy", config=config, inputs={}, build=second)
        assert (directory / "part").exists()

    assert run_stage(output, name="toy", config=1, inputs={}, build=meet)
    assert (output / "part").read_text() == "half"
    assert not run_stage(output, name="toy", config=1, inputs={}, build=meet)


def test_one_after_the_other_holds_a_lock(tmp_path):
    count = tmp_path / "count"
    count.write_text("0")
    script = """
import sys
from pathlib import Path
from recsys.files import alone
lock, count = map(Path, sys.argv[1:])
for _ in range(200):
    with alone(lock):
        count.write_text(str(int(count.read_text()) + 1))
"""
    words = [sys.executable, "-c", script, str(tmp_path / "lock"), str(count)]
    processes = [subprocess.Popen(words) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert count.read_text() == "600"


def test_a_process_that_is_killed_keeps_nobody_out(tmp_path):
    output = tmp_path / "out"
    script = """
import os, signal, sys
from pathlib import Path
from recsys.files import run_stage
def build(directory):
    (directory / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
run_stage(Path(sys.argv[1]), name="toy", config=1, inputs={}, build=build)
"""
    killed = subprocess.run([sys.executable, "-c", script, output], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run_stage(output, name="toy", config=1, inputs={}, build=lambda directory: None)
    assert (output / "part").read_text() == "half"


def test_a_kill_just_before_the_rename_loses_nothing(tmp_path, monkeypatch):
    output = tmp_path / "out"
    calls = []

    def build(directory: Path) -> None:
        calls.append(1)
        (directory / "result").write_text("whole")

    def run():
        return run_stage(output, name="toy", config=1, inputs={}, build=build)

    def killed(partial, output):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("recsys.files._replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not output.exists()
    assert run()
    assert len(calls) == 1
    assert sorted(path.name for path in output.iterdir()) == ["result", "stage.json"]


def test_scratch_goes_once_the_output_is_there(tmp_path, monkeypatch):
    output = tmp_path / "out"

    def build(directory: Path) -> None:
        (directory / "checkpoints").mkdir()
        for name in ("checkpoints/1", "step-7", "result"):
            (directory / name).write_text("x")

    def run():
        scratch = ("checkpoints", "step-*")
        return run_stage(output, name="toy", config=1, inputs={}, build=build, scratch=scratch)

    def killed(directory, patterns):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("recsys.files._tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert (output / "checkpoints").exists()
    (tmp_path / ".out.replaced").mkdir()  # as a killed process leaves it
    assert not run()
    assert not (tmp_path / ".out.replaced").exists()
    assert sorted(path.name for path in output.iterdir()) == ["result", "stage.json"]


@pytest.mark.parametrize("uri", ["s3://bucket/run", "gs://bucket/run"])
def test_a_uri_as_output_is_refused_and_not_taken_for_a_folder(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is a URI"):
        run_stage(Path(uri), name="toy", config=1, inputs={}, build=print)
    assert not list(tmp_path.iterdir())


def test_what_no_stage_has_written_is_not_replaced(tmp_path):
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    with pytest.raises(ValueError, match="a directory of its own"):
        run_stage(tmp_path / "run", name="toy", config=1, inputs={}, build=print)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["teacher"]


def test_what_lies_beside_an_output_is_nobody_elses(tmp_path):
    for name in ("out.old", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    run = partial(run_stage, tmp_path / "out", name="toy", inputs={}, build=lambda _: None)
    with pytest.raises(ValueError, match="no stage has begun it"):
        run(config=1)
    (tmp_path / "out.partial").rename(tmp_path / "elsewhere")
    assert run(config=1)
    assert run(config=2)
    assert (tmp_path / "out.old" / "precious").exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        ".out.lock",
        "elsewhere",
        "out",
        "out.old",
    }


def test_what_a_kill_left_of_a_beginning_is_not_in_the_way(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "inputs.json.tmp").write_text('"half')
    assert run_stage(tmp_path / "out", name="toy", config=1, inputs={}, build=lambda _: None)


def test_a_kill_between_two_renames_loses_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    output = tmp_path / "out"

    def run(config):
        def build(directory: Path) -> None:
            (directory / "result").write_text(f"{config}")

        return run_stage(output, name="toy", config=config, inputs={}, build=build)

    def killed(*_):
        raise KeyboardInterrupt

    assert run(1)
    rename = Path.rename
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda a, b: killed() if b == output else rename(a, b))
        with pytest.raises(KeyboardInterrupt):
            run(2)
    assert (tmp_path / ".out.replaced" / "result").read_text() == "1"
    assert run(2)
    assert (output / "result").read_text() == "2"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_a_kill_while_other_work_is_deleted_leaves_no_half_of_it(tmp_path, monkeypatch):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "inputs.json").write_text('"other"')
    (tmp_path / "out.partial" / "part").touch()

    def killed(path, **_):
        (path / "inputs.json").unlink(missing_ok=True)
        if path.exists():
            raise KeyboardInterrupt

    def run():
        return run_stage(tmp_path / "out", name="toy", config=1, inputs={}, build=lambda _: None)

    with monkeypatch.context() as patched:
        patched.setattr("recsys.files.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage.json"]


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk" / "real")
    for config in (1, 2):

        def build(directory: Path, config=config) -> None:
            (directory / "result").write_text(f"{config}")

        assert run_stage(link, name="toy", config=config, inputs={}, build=build)
    assert link.is_symlink()
    assert (tmp_path / "disk" / "real" / "result").read_text() == "2"


def test_a_file_or_no_name_at_all_is_no_output(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        run_stage(tmp_path / "file", name="toy", config=1, inputs={}, build=print)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="name a directory below it"):
        run_stage(Path(), name="toy", config=1, inputs={}, build=print)


def test_a_record_of_something_else_is_no_stage(tmp_path):
    (tmp_path / "stage.json").write_text('{"act": 1}')
    with pytest.raises(ValueError, match="not of a stage"):
        fingerprint(tmp_path)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert run_stage(tmp_path / "out", name="toy", config=1, inputs={}, build=lambda _: None)


def test_input_that_no_stage_finished_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stage"):
        run_stage(tmp_path / "out", name="toy", config=1, inputs={"a": tmp_path}, build=print)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


def test_a_stage_does_not_replace_what_it_reads(tmp_path):
    work(tmp_path / "model")
    with pytest.raises(ValueError, match="model is what is read, and would be replaced"):
        work(tmp_path / "model", inputs={"model": tmp_path / "other" / ".." / "model"})


def test_an_input_that_is_replaced_meanwhile_is_told(tmp_path):
    work(tmp_path / "input", config=1)

    def build(directory):
        work(tmp_path / "input", config=2)

    with pytest.raises(ValueError, match="what test reads was replaced meanwhile"):
        run_stage(
            tmp_path / "out",
            name="test",
            config={},
            inputs={"input": tmp_path / "input"},
            build=build,
        )
    assert not (tmp_path / "out").exists()


def test_an_infinite_setting_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="a setting is infinite"):
        work(tmp_path / "out", config={"clip_norm": float("inf")})


def test_hash_ignores_the_order_of_keys():
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 2, "b": 1})


def test_what_is_not_there_is_told_by_its_name(tmp_path: Path):
    with pytest.raises(ValueError, match=f"there is no finished dataset in {tmp_path}: run the"):
        fingerprint(tmp_path / "dataset")
