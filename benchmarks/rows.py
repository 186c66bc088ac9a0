"""Results as tidy rows, one value each, in benchmarks/results/<benchmark>.json; and the README.

A row is found by what was measured, not by when or at which commit, so that a benchmark that was
interrupted goes on from where it was.
"""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from recsys.evaluate.cost import hardware, versions
from recsys.files import alone, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
READMES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")


class Subject(NamedTuple):
    """What is measured, once or under several metrics."""

    dataset: str
    system: str
    variant: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured value; all results have these keys."""

    benchmark: str
    dataset: str
    system: str
    variant: str
    metric: str
    value: float
    unit: str
    seed: int
    command: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str
    date: str

    @property
    def subject(self) -> Subject:
        """What was measured."""
        return Subject(self.dataset, self.system, self.variant, self.seed)


class Results:
    """The rows of one benchmark in their file."""

    def __init__(self, benchmark: str, directory: Path = RESULTS):
        self.benchmark, self.path = benchmark, directory / f"{benchmark}.json"

    def rows(self) -> list[Row]:
        """Returns all rows in the file."""
        if not self.path.exists():
            return []
        return [Row(**row) for row in read_json(self.path)]

    def has(self, subject: Subject, command: str) -> bool:
        """Returns whether `command` has measured `subject`, at whatever commit."""
        return any(row.subject == subject and row.command == command for row in self.rows())

    def put(
        self,
        subject: Subject,
        command: str,
        values: dict[str, tuple[float, str]],
        *,
        measured_with: dict[str, str] | None = None,
    ) -> None:
        """Writes the values of `subject`, in place of those it had.

        Args:
            values: value and unit of each metric.
            measured_with: versions; none for this process's own.
        """
        shared = {
            "benchmark": self.benchmark,
            **subject._asdict(),
            "command": command,
            "versions": measured_with or versions(),
            **stamp(),
        }
        measured = [
            Row(**shared, metric=metric, value=value, unit=unit)
            for metric, (value, unit) in values.items()
        ]
        with alone(self.path):  # others measure beside this
            kept = [row for row in self.rows() if row.subject != subject]
            write_json(self.path, [asdict(row) for row in kept + measured])


def stamp() -> dict[str, Any]:
    """Returns where and when a row is measured: hardware, commit, date."""
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
    return {
        "hardware": hardware(),
        "commit": commit[:10],
        "date": datetime.now(UTC).date().isoformat(),
    }


def values_of(rows: Iterable[Row], metric: str, **subject: Any) -> list[float]:
    """Returns the values of `metric` in rows whose subject has the given fields."""
    wanted = subject.items()
    return [
        row.value
        for row in rows
        if row.metric == metric and all(getattr(row, name) == value for name, value in wanted)
    ]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def replace_block(text: str, name: str, content: str) -> str:
    """Returns `text` with `content` between its markers `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the text does not have both markers, in this order.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no block to write to: add a line {start} and after it a line {end}")
    return f"{head}{start}\n{content}\n{end}{tail}"


def write_block(name: str, content: str) -> None:
    """Writes `content` between the markers `name` of the README that has them, the project's or
    that of the benchmarks."""
    marker = f"<!-- {name} -->"
    readme = next((path for path in READMES if marker in path.read_text()), READMES[-1])
    readme.write_text(replace_block(readme.read_text(), name, content))
