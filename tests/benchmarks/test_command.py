import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import rows
from benchmarks.command import command, run
from benchmarks.rows import Results, Subject, values_of
from benchmarks.variants import job


def measure(results, options):
    for dataset, value in (("synthetic", 1.0), ("yelp", 2.0)):
        results.put(Subject(dataset, "recsys", "preset", 0), "it", {"ndcg@10": (value, "")})


def markdown(of_rows):
    return f"mean {sum(values_of(of_rows, 'ndcg@10')) / len(of_rows)}"


def test_the_table_is_of_the_data_set_that_is_asked_about(tmp_path, capsys):
    results = Results("some", tmp_path)
    run(results, SimpleNamespace(readme=False, dataset="yelp"), measure, markdown)
    assert capsys.readouterr().out == "mean 2.0\n"
    run(results, SimpleNamespace(readme=False), measure, markdown)
    assert capsys.readouterr().out == "mean 1.5\n"


def test_for_the_readme_nothing_is_measured(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- some-yelp -->\n<!-- /some-yelp -->\n")
    other = tmp_path / "other.md"
    other.write_text("nothing to write to")
    monkeypatch.setattr(rows, "READMES", (other, readme))
    results = Results("some", tmp_path)
    measure(results, None)
    options = SimpleNamespace(readme=True, dataset="yelp")
    run(results, options, lambda *_: pytest.fail("it measures"), markdown)
    assert readme.read_text() == "<!-- some-yelp -->\nmean 2.0\n<!-- /some-yelp -->\n"


def test_what_a_user_can_cause_is_one_line(monkeypatch):
    def refused():
        raise ValueError("no such thing")

    monkeypatch.setattr("sys.argv", ["some"])
    with pytest.raises(SystemExit, match="error: no such thing"):
        command("some", refused, measure, markdown)


def test_a_job_that_fails_has_said_why_and_its_code_is_the_benchmarks(tmp_path, capfd):
    def failing(results, options):
        job("prepare", ["quickstart", "--log", str(tmp_path / "none.csv")], output=tmp_path / "to")

    with pytest.raises(SystemExit) as ended:
        run(Results("some", tmp_path), SimpleNamespace(readme=False), failing, markdown)
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said


STOPPED = """
import subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from benchmarks.command import run
from benchmarks.rows import Results

def measure(results, options):
    subprocess.run(["sh", "-c", 'echo $$ > "$0" && exec sleep 60', sys.argv[1]], check=True)

run(Results("some", Path(".")), SimpleNamespace(readme=False), measure, str)
"""


def test_a_benchmark_that_is_stopped_stops_its_job(tmp_path):
    said = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", STOPPED, str(said)], cwd=rows.ROOT) as benchmark:
        while not (said.exists() and said.read_text().endswith("\n")):
            assert benchmark.poll() is None
            time.sleep(0.05)
        benchmark.terminate()
        assert benchmark.wait() == 128 + 15
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), 0)
