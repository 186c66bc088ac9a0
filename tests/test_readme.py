import re
import shlex
from pathlib import Path

import pytest

from jobs import compress, distill, ensemble, evaluate, pipeline, prepare, search, train
from jobs.command import command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
JOBS = {
    "prepare": prepare.Prepare,
    "train": train.Train,
    "ensemble": ensemble.Ensemble,
    "distill": distill.Distill,
    "compress": compress.Compress,
    "evaluate": evaluate.Evaluate,
    "search": search.Search,
    "pipeline": pipeline.Pipeline,
}
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text()
COMMANDS = re.findall(r"python -m jobs\.(\w+)([^`\n]*)", README + BENCHMARKS)


@pytest.mark.parametrize(("name", "flags"), COMMANDS)
def test_commands_of_the_readme_parse(name, flags):
    assert (ROOT / "jobs" / f"{name}.py").exists()
    if name in JOBS:
        seen = []
        assert command(JOBS[name].from_preset, seen.append, shlex.split(flags)) == 0
        assert isinstance(seen[0], JOBS[name])


def test_the_two_commands_stand_on_lines_of_their_own():
    lines = [line.strip() for line in README.splitlines()]
    assert "pip install -e . && python -m jobs.pipeline" in lines
    assert "pip install -e '.[test]' && pytest" in lines


def test_the_tree_names_what_there_is():
    tree = README[README.index("## The tree") :]
    for path in (ROOT / "recsys").iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            assert path.name in tree, path.name


def test_the_benchmarks_that_are_named_are_those_there_are():
    introduction, _, _ = BENCHMARKS.partition("\n## ")
    named = set(re.findall(r"^\| `(\w+)` \|", introduction, re.MULTILINE))
    commands = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text()
    }
    assert named == commands
