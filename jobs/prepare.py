"""Turn a log into a dataset: `python -m jobs.prepare [preset] [flags]`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs.command import command
from jobs.on_ray import start_ray
from jobs.presets import Preset
from recsys.data.movielens import FILES
from recsys.data.read import identify, list_files, other_files
from recsys.data.schema import PrepareConfig
from recsys.files import read_json, run_stage


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Reads, checks and cleans a log, and groups it by user."""

    config: Annotated[PrepareConfig, tyro.conf.arg(name="")]
    """The log and how it is cleaned and split."""
    output: Path
    """Where the dataset goes."""

    @classmethod
    def from_preset(cls, preset: Preset, directory: Path) -> "Prepare":
        """Returns the preset's preparation in a run directory."""
        return cls(config=preset.prepare, output=directory / "dataset")


def run(job: Prepare) -> Path:
    """Prepares the dataset, unless it is there, shows its counts, and returns where it is."""
    config = job.config.resolved()
    run_stage(
        job.output,
        name="prepare",
        config=config,
        inputs=_contents(config),
        build=lambda directory: _prepare(config, directory),
    )
    manifest = read_json(job.output / "manifest.json")
    print(
        f"  {manifest['num_users']:,} users, {manifest['num_items']:,} items, "
        f"{manifest['num_interactions']:,} interactions; {manifest['num_rejected']:,} rows "
        f"rejected, {manifest['num_duplicates']:,} duplicates dropped, {manifest['num_rare']:,} of "
        f"rare users and items, {manifest['num_items_never_seen']:,} items of the table never "
        f"seen, {manifest['num_cold_items']:,} kept out of training",
        flush=True,
    )
    return job.output


def _prepare(config: PrepareConfig, directory: Path) -> None:
    start_ray()
    from recsys.data.on_ray import prepare

    prepare(config, directory)


def _contents(config: PrepareConfig) -> dict[str, str]:
    """Returns what tells one input from another, by file."""
    locations = [location for location in (config.log, config.items) if location is not None]
    if config.source == "movielens-1m" and config.log is not None:
        folder = Path(config.log)
        files = [str(folder / name) for name in FILES] if folder.is_dir() else locations
    else:
        files = [file for location in locations for file in list_files(location)]
        for location in locations:
            if others := other_files(location):
                print(f"  {location}: {len(others)} of no known format left out: {others[0]} ...")
    for encoder in config.content.encoders.values():
        if Path(encoder).is_dir():  # else a name on the hub
            files += [str(path) for path in sorted(Path(encoder).iterdir()) if path.is_file()]
    return {file: identify(file) for file in files}


if __name__ == "__main__":
    sys.exit(command(Prepare.from_preset, run))
