"""From a command line to a job: presets, flags, one line of error, exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from jobs import heed_interrupts
from jobs.presets import PRESETS, Preset

Job = TypeVar("Job")
DEFAULT_PRESET = "quickstart"
RUN = """A preset, quickstart where none is named, and its flags, which PRESET --help explains. With
each of them --run DIR: the directory in which every stage has its own; runs/<preset> where it is
not given."""


def command(
    from_preset: Callable[[Preset, Path], Job],
    run: Callable[[Job], object],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a job as the command line says and returns the exit code.

    The first word may name a preset; flags override its settings, and `--run DIR` says in which
    directory those of the stages are, instead of runs/<preset>. What a user can cause ends in one
    line on standard error and code 2; Ctrl-C in code 130, and the same command goes on later.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    heed_interrupts()
    try:
        run(_parse(from_preset, words, sys.argv[0]))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parse(from_preset: Callable[[Preset, Path], Job], words: list[str], program: str) -> Job:
    prog = f"python -m jobs.{Path(program).stem}"
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--run", type=Path)
    known, words = parser.parse_known_args(words)
    if not words or words[0].startswith("-"):
        wants_help = bool({"-h", "--help"} & set(words[:1]))
        words = words if wants_help else [DEFAULT_PRESET, *words]

    def job(name: str) -> Job:
        return from_preset(PRESETS[name], known.run or Path("runs") / name)

    if words[0] in PRESETS:  # alone, so that errors and help do not speak of the others
        preset = job(words[0])
        return tyro.cli(
            type(preset),
            prog=f"{prog} {words[0]}",
            description=f"{PRESETS[words[0]].description} Takes --run DIR, too.",
            default=preset,
            args=words[1:],
            config=(tyro.conf.AvoidSubcommands,),  # as overridable_config_cli has it
        )
    jobs = {name: (preset.description, job(name)) for name, preset in PRESETS.items()}
    return tyro.extras.overridable_config_cli(jobs, prog=prog, description=RUN, args=words)
