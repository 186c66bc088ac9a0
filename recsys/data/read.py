"""Reading logs and tables in any of three formats, from any file system that Arrow knows."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

BATCH_ROWS = 100_000
MALFORMED = "malformed"  # column of a batch: the text of a row that could not be read
PARQUET, CSV, JSON_LINES = (".parquet", ".pq"), (".csv",), (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".bz2", ".zst")


def list_files(location: str) -> list[str]:
    """Returns the data files of `location`, a file or a folder, in the order of their names.

    Raises:
        ValueError: there is nothing to read.
    """
    system, path = _open(location)
    prefix = location.partition("://")[0] + "://" if "://" in location else ""
    info = system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"{location} does not exist")
    if info.type == fs.FileType.File:
        return [prefix + path]
    children = system.get_file_info(fs.FileSelector(path, recursive=True))
    files = sorted(c.path for c in children if c.type == fs.FileType.File and _kind(c.path))
    if not files:
        raise ValueError(f"{location} holds no .parquet, .csv or .jsonl file")
    return [prefix + file for file in files]


def check_file(location: str, columns: Sequence[str]) -> None:
    """Reads just enough of a file to know that it can be read and has `columns`.

    Raises:
        ValueError: it is empty, truncated, of no known format, or lacks a column.
    """
    system, path = _open(location)
    if system.get_file_info(path).size == 0:
        raise ValueError(f"{location} is empty")
    try:
        names = _column_names(location)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{location} cannot be read ({_first_line(error)})") from None
    missing = [column for column in columns if names is not None and column not in names]
    if missing:
        raise ValueError(
            f"{location} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}"
        )


def read_batches(location: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yields the rows of a file in order, a part at a time.

    Rows of CSV and JSON Lines that are no rows come with their text in the column "malformed".

    Args:
        columns: those wanted, of a CSV as text; none for all, with types as found.

    Raises:
        ValueError: the file is damaged.
    """
    readers = {PARQUET: _read_parquet, CSV: _read_csv, JSON_LINES: _read_json_lines}
    try:
        yield from readers[_known_kind(location)](location, columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{location} cannot be read ({_first_line(error)})") from None


def read_table(location: str) -> pa.Table:
    """Returns all rows of a file or folder.

    Raises:
        ValueError: a file cannot be read, or has rows that are no rows.
    """
    tables = []
    for file in list_files(location):
        check_file(file, [])
        for table in read_batches(file, None):
            if MALFORMED in table.column_names:
                raise ValueError(f"{file} has a row that cannot be read: {table[MALFORMED][0]}")
            tables.append(table)
    return pa.concat_tables(tables, promote_options="permissive")


def _open(location: str) -> tuple[fs.FileSystem, str]:
    if "://" not in location:
        return fs.LocalFileSystem(), location
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{location} cannot be opened ({_first_line(error)})") from None


def _kind(location: str) -> tuple[str, ...] | None:
    path = PurePosixPath(location.lower())
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    return next((kind for kind in (PARQUET, CSV, JSON_LINES) if suffix in kind), None)


def _known_kind(location: str) -> tuple[str, ...]:
    kind = _kind(location)
    if kind is None:
        raise ValueError(f"{location} is of no known format; give .parquet, .csv or .jsonl")
    return kind


def _column_names(location: str) -> list[str] | None:
    """Returns the names in a file's head; none for JSON Lines, whose rows may differ."""
    kind = _known_kind(location)
    system, path = _open(location)
    if kind is PARQUET:
        with system.open_input_file(path) as file:
            return pq.ParquetFile(file).schema_arrow.names
    if kind is CSV:
        with system.open_input_stream(path) as stream:
            return pyarrow.csv.open_csv(stream).schema.names
    return None


def _read_parquet(location: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    system, path = _open(location)
    with system.open_input_file(path) as file:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def _read_csv(location: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    system, path = _open(location)
    malformed: list[str] = []

    def keep(row: Any) -> str:
        malformed.append(row.text)
        return "skip"

    convert = pyarrow.csv.ConvertOptions(
        column_types={column: pa.string() for column in columns or ()},
        include_columns=list(columns) if columns else None,
        strings_can_be_null=True,
    )
    parse = pyarrow.csv.ParseOptions(invalid_row_handler=keep)
    with system.open_input_stream(path) as stream:
        for batch in pyarrow.csv.open_csv(stream, parse_options=parse, convert_options=convert):
            yield pa.Table.from_batches([batch])
    if malformed:
        yield pa.table({MALFORMED: malformed})


def _read_json_lines(location: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    system, path = _open(location)
    rows: list[dict] = []
    with system.open_input_stream(path) as stream:
        for line in _lines(stream):
            rows.append(_parse_line(line))
            if len(rows) == BATCH_ROWS:
                yield _as_table(rows, columns)
                rows = []
    if rows:
        yield _as_table(rows, columns)


def _lines(stream: Any) -> Iterator[str]:
    text = io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8", errors="replace")
    return (line for line in text if line.strip())


def _parse_line(line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    return row if isinstance(row, dict) else {MALFORMED: line.strip()}


def _as_table(rows: list[dict], columns: Sequence[str] | None) -> pa.Table:
    """Returns rows as a table; columns that were asked for become text."""
    if columns is None:
        return pa.Table.from_pylist(rows)
    names = [*columns, *([MALFORMED] if any(MALFORMED in row for row in rows) else [])]
    arrays = [pa.array([_as_text(row.get(name)) for row in rows], pa.string()) for name in names]
    return pa.table(dict(zip(names, arrays, strict=True)))


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
