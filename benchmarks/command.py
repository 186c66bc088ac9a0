"""What the command lines of all benchmarks have in common."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import tyro

from benchmarks.rows import Results, Row, write_block


class Asked(Protocol):
    """What every benchmark's options have; those about one data set have its name, too."""

    @property
    def readme(self) -> bool:
        """Whether the README gets the table of what is measured, and nothing is measured."""
        ...


Options = TypeVar("Options", bound=Asked)
Measure = Callable[[Results, Options], None]
Markdown = Callable[[Sequence[Row]], str]


def command(
    benchmark: str, options: type[Options], measure: Measure[Options], markdown: Markdown
) -> None:
    """Measures what the command line asks for, and prints the table."""
    try:
        asked = tyro.cli(options, prog=f"python -m benchmarks.{benchmark}")
        run(Results(benchmark), asked, measure, markdown)
    except ValueError as error:
        sys.exit(f"error: {error}")


def run(results: Results, options: Options, measure: Measure[Options], markdown: Markdown) -> None:
    """Measures what is not measured yet and prints the table, or writes it to the README."""
    if not options.readme:
        # As on Ctrl-C: an exception ends the job that runs, too.
        former = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            measure(results, options)
        except subprocess.CalledProcessError as error:
            # One that fails has said why; one that was killed could not.
            sys.exit(error.returncode if error.returncode > 0 else f"error: {error}")
        finally:
            signal.signal(signal.SIGTERM, former)
    dataset = getattr(options, "dataset", None)
    text = markdown([row for row in results.rows() if dataset in (None, row.dataset)])
    print(text)
    if options.readme:
        write_block("-".join(filter(None, (results.benchmark, dataset))), text)
