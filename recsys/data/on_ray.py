"""Preparing a log with Ray Data: files are read, cleaned and grouped by user in parallel."""

import logging
import re
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import ray.data
from ray.exceptions import RayError

from recsys.data.build import Grouped, build_dataset, sort_and_drop_duplicates
from recsys.data.clean import CLEAN, PROBLEM, RAW, clean, wanted_columns
from recsys.data.content import (
    BATCH_SIZE,
    ContentConfig,
    Encoder,
    check_content,
    write_content,
)
from recsys.data.movielens import convert
from recsys.data.read import check_file, list_files, read_batches, read_table
from recsys.data.schema import ITEM, PLACE, TIME, USER, PrepareConfig
from recsys.data.sequences import ITEMS
from recsys.data.split import LeaveOneOut
from recsys.data.synthetic import SHORTEST, generate
from recsys.data.vocabulary import align, read_item_table

pc: Any = pyarrow.compute  # its functions are made when it is imported

REJECTED = "rejected.parquet"
ROWS_PER_PARTITION = 5_000_000
BYTES_PER_ROW = 8  # of a compressed log, roughly: only the number of partitions rests on it
PLACES_PER_FILE = 2**40
NUM_EXAMPLES = 3
SHOWN = 300  # characters of an example


def prepare(config: PrepareConfig, directory: Path) -> dict[str, Any]:
    """Writes a dataset into `directory` and returns its manifest; Ray is running.

    Raises:
        ValueError: the log cannot be read, has bad rows that are refused, or nothing is left.
    """
    config = config.resolved()
    scratch = directory.resolve() / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    config, facts = _materialize_source(config, scratch)
    files = list_files(str(config.log))
    for file in files:
        check_file(file, wanted_columns(config))
    item_table = None
    if config.items is not None:
        items = read_table(config.items, [config.item_column])
        item_table = read_item_table(items, config.item_column)
    check_content(config.content, item_table)
    partitions = _group(config, files, item_table, scratch)
    rejected = _rejected(config, files, scratch, directory)
    grouped = [Grouped(Path(row["path"]), row["num_duplicates"]) for row in partitions]
    facts |= {
        "num_rejected": sum(rejected.values()),
        "rejected": dict(rejected),
        "columns": {"user": config.user_column, "item": config.item_column},
    }
    manifest = build_dataset(directory, config, grouped, item_table=item_table, facts=facts)
    if item_table is not None and config.content.columns:
        _write_content(directory, config.content, item_table)
    shutil.rmtree(scratch)
    return manifest


def _write_content(directory: Path, config: ContentConfig, item_table: pa.Table) -> None:
    ids = pq.read_table(directory / ITEMS, columns=[ITEM])[ITEM].combine_chunks()
    items = align(ids, item_table, [ITEM, *config.columns])
    on_ray = partial(encode_on_ray, num_workers=config.num_workers)
    write_content(directory, config, items, on_ray)


class _Encoder:
    """Holds an encoder; turns rows of values into rows of features."""

    def __init__(self, make_encoder: Callable[[], Encoder]):
        import torch  # not above: most logs are prepared without

        torch.set_num_threads(1)
        self.encoder = make_encoder()

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        features_NF = self.encoder(batch["value"].to_pylist())
        return {"row": batch["row"].to_numpy(), "features": features_NF}


def encode_on_ray(
    make_encoder: Callable[[], Encoder], values: Sequence[Any], num_workers: int
) -> np.ndarray:
    """Returns what `encode` returns, computed by `num_workers` processes."""
    quieten()
    make_encoder()  # here first, so that what is wrong with it is said once
    num_blocks = -(-len(values) // BATCH_SIZE)
    rows = [{"row": row, "value": value} for row, value in enumerate(values)]
    done = ray.data.from_items(rows, override_num_blocks=num_blocks).map_batches(
        _Encoder,
        batch_size=BATCH_SIZE,
        batch_format="pyarrow",
        fn_constructor_args=(make_encoder,),
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, num_blocks)),
        num_cpus=1,
    )
    batches = list(done.iter_batches(batch_format="numpy"))
    features_NF = np.concatenate([batch["features"] for batch in batches])
    return features_NF[np.argsort(np.concatenate([batch["row"] for batch in batches]))]


def _materialize_source(
    config: PrepareConfig, scratch: Path
) -> tuple[PrepareConfig, dict[str, Any]]:
    """Returns the config of a log in files, writing the built-in or converted log first."""
    facts: dict[str, Any] = {"source": config.source, "best_possible": None}
    if config.source == "synthetic":
        log = generate(config.synthetic)
        pq.write_table(log.interactions, scratch / "log.parquet")
        pq.write_table(log.items, scratch / "items.parquet")
        if _keeps_all(config):
            facts["best_possible"] = log.best_possible  # of every user's last two items
        log_path, items_path = scratch / "log.parquet", scratch / "items.parquet"
    elif config.source == "movielens-1m":
        log_path, items_path = convert(scratch, config.log)
        # As everybody cuts it: films with fewer than five ratings are left out.
        config = replace(config, k_core=max(config.k_core, 5))
    else:
        return config, facts
    names = {"user_column": USER, "item_column": ITEM, "time_column": TIME}
    return replace(config, log=str(log_path), items=str(items_path), **names), facts


def _keeps_all(config: PrepareConfig) -> bool:
    dropped = config.k_core > 1 or config.min_length > SHORTEST or config.cold_items > 0
    return config.cut == LeaveOneOut() and not dropped


def _group(
    config: PrepareConfig, files: list[str], item_table: pa.Table | None, scratch: Path
) -> list[dict[str, Any]]:
    """Writes all rows of a user to one of a few files and returns what each file is."""
    quieten()
    known = item_table["item_id"].combine_chunks() if item_table is not None else None
    num_partitions = _num_partitions(files)

    def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        place = row["number"] * PLACES_PER_FILE
        # A log without rows has a partition too.
        yield {"partition": 0, "rows": _serialize(CLEAN.empty_table())}
        for raw in read_batches(row["path"], wanted_columns(config)):
            rows = clean(raw, config, first_place=place, known_items=known)
            place += len(raw)
            for number, part in _by_partition(rows, num_partitions):
                yield {"partition": number, "rows": _serialize(part)}

    def write(group: pa.Table) -> pa.Table:
        number = group["partition"][0].as_py()
        rows = pa.concat_tables([_deserialize(part.as_py()) for part in group["rows"]])
        path = scratch / f"part-{number:06d}.parquet"
        if number < 0:
            pq.write_table(rows.sort_by(PLACE), scratch / REJECTED)
            return pa.table({"partition": [number], "path": [""], "num_duplicates": [0]})
        rows, num_duplicates = sort_and_drop_duplicates(rows, config.drop_duplicates)
        pq.write_table(rows.drop_columns([PROBLEM, RAW]), path)
        return pa.table(
            {"partition": [number], "path": [str(path)], "num_duplicates": [num_duplicates]}
        )

    sources = [{"number": number, "path": _absolute(file)} for number, file in enumerate(files)]
    dataset = ray.data.from_items(sources, override_num_blocks=len(sources)).flat_map(read)
    grouped = dataset.groupby("partition", num_partitions=num_partitions + 1)
    try:
        rows = grouped.map_groups(write, batch_format="pyarrow").take_all()
    except (RayError, ValueError) as error:
        raise ValueError(_root_cause(error)) from None
    return sorted((r for r in rows if r["partition"] >= 0), key=lambda r: r["partition"])


def quieten() -> None:
    """Leaves of Ray Data's words one progress bar for a person who watches; our errors say the
    rest."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.data.dataset"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _absolute(file: str) -> str:
    return file if "://" in file else str(Path(file).resolve())


def _num_partitions(files: list[str]) -> int:
    sizes = [Path(file).stat().st_size for file in files if "://" not in file]
    rows = sum(sizes) / BYTES_PER_ROW + ROWS_PER_PARTITION * (len(files) - len(sizes))
    return max(1, round(rows / ROWS_PER_PARTITION))


def _by_partition(rows: pa.Table, num_partitions: int) -> Iterator[tuple[int, pa.Table]]:
    """Yields the rows of each partition of users; those that have a problem under -1."""
    good = pc.is_null(rows[PROBLEM])
    bad = rows.filter(pc.invert(good))
    if len(bad):
        yield -1, bad
    rows = rows.filter(good)
    if num_partitions == 1:
        if len(rows):
            yield 0, rows
        return
    users = rows[USER].to_pylist()
    number_N = np.array([zlib.crc32(user.encode()) % num_partitions for user in users], np.int64)
    for number in np.unique(number_N):
        yield int(number), rows.filter(pa.array(number_N == number))


def _serialize(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, CLEAN) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _deserialize(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()


def _rejected(
    config: PrepareConfig, files: Sequence[str], scratch: Path, directory: Path
) -> Counter[str]:
    """Returns how many rows were rejected by kind, and sets them aside or refuses them."""
    if not (scratch / REJECTED).exists():
        return Counter()
    rows = pq.read_table(scratch / REJECTED)
    counts = Counter(rows[PROBLEM].to_pylist())
    kinds = ", ".join(f"{count} x {kind}" for kind, count in counts.most_common())
    examples = _examples(rows)
    if config.on_bad_rows == "refuse":
        raise ValueError(
            f"{len(rows)} bad rows in {config.log}: {kinds} (such as {examples}); mend them, or "
            "keep them apart with --on-bad-rows set-aside (of a pipeline: "
            "--preset.prepare.on-bad-rows)"
        )
    found = pa.array([files[place // PLACES_PER_FILE] for place in rows[PLACE].to_pylist()])
    pq.write_table(rows.select([PROBLEM, RAW]).add_column(0, "file", found), directory / REJECTED)
    print(f"prepare: {len(rows)} bad rows set aside: {kinds} (such as {examples})")
    return counts


def _examples(rows: pa.Table) -> str:
    """Returns the first row of each kind of problem, as text, of a few kinds."""
    problems = pc.unique(rows[PROBLEM])[:NUM_EXAMPLES]
    firsts = [pc.index(rows[PROBLEM], problem).as_py() for problem in problems]
    return "; ".join(rows[RAW][first].as_py()[:SHOWN] for first in firsts)


def _root_cause(error: BaseException) -> str:
    """Returns the message of the ValueError that started it, without the traces around it."""
    found = re.findall(r"^(?:\w+\.)*ValueError: (.+)$", str(error), flags=re.MULTILINE)
    return found[-1] if found else str(error).strip().splitlines()[-1]
