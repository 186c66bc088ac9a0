"""Reading logs and tables in any of three formats, from any file system that Arrow knows."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow import fs

from recsys.files import sha256

BATCH_ROWS = 100_000
ARROW_ROW_BYTES = 1 << 21  # of CSV: two of Arrow's blocks, and no row is larger
MALFORMED = "malformed"  # column of a batch: the text of a row that could not be read
NO_ROW = object()  # key of that text, which no JSON object has
PARQUET, CSV, JSON_LINES = (".parquet", ".pq"), (".csv",), (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".bz2", ".zst")


def list_files(location: str) -> list[str]:
    """Returns the data files of `location`, a file or a folder, in the order of their names.

    Raises:
        ValueError: there is nothing to read.
    """
    system, path = _open(location)
    info = system.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"{location} does not exist")
    if info.type == fs.FileType.File:
        return [location]
    files = [file for file in _visible_files(system, path) if _kind(file)]
    if not files:
        raise ValueError(f"{location} holds no .parquet, .csv or .jsonl file")
    return [_with_path(location, path, file) for file in files]


def other_files(location: str) -> list[str]:
    """Returns the names of what else lies in a folder and is not hidden, which nobody reads."""
    system, path = _open(location)
    if system.get_file_info(path).type != fs.FileType.Directory:
        return []
    return [PurePosixPath(file).name for file in _visible_files(system, path) if not _kind(file)]


def _visible_files(system: fs.FileSystem, folder: str) -> list[str]:
    children = system.get_file_info(fs.FileSelector(folder, recursive=True))
    files = (child.path for child in children if child.type == fs.FileType.File)
    return sorted(file for file in files if not _is_hidden(file, folder))


def _is_hidden(file: str, folder: str) -> bool:
    parts = PurePosixPath(file).relative_to(PurePosixPath(folder)).parts
    return any(part[0] in "._" for part in parts)


def _with_path(location: str, folder: str, file: str) -> str:
    """Returns where `file` of the folder at `location` is, with the host and options of a URI."""
    inside = str(PurePosixPath(file).relative_to(PurePosixPath(folder)))
    if "://" not in location:
        return str(PurePosixPath(location) / inside)
    address, mark, options = location.partition("?")
    return f"{address.rstrip('/')}/{quote(inside)}{mark}{options}"


def identify(location: str) -> str:
    """Returns what tells a file from what was there before: a local one's hash; else size and
    time of change."""
    if "://" not in location:
        return sha256(Path(location))
    system, path = _open(location)
    info = system.get_file_info(path)
    return f"{info.size} bytes, changed at {info.mtime_ns}"


def check_file(location: str, columns: Sequence[str]) -> None:
    """Reads just enough of a file to know that it can be read and has `columns`.

    Raises:
        ValueError: it is empty, truncated, of no known format, lacks a column or has it twice.
    """
    system, path = _open(location)
    if system.get_file_info(path).size == 0:
        raise ValueError(f"{location} is empty")
    try:
        names = _column_names(location, columns)
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{location} cannot be read ({_first_line(error)})") from None
    if not names:
        return
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise ValueError(f"{location} has the column {twice[0]!r} more than once: which is meant?")
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(
            f"{location} has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}: "
            "say what is what with --user-column and its siblings (of a pipeline: "
            "--preset.prepare.user-column)"
        )


def read_batches(location: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields the rows of a file in order, a part at a time.

    Rows of CSV and JSON Lines that are no rows come with their text in the column "malformed".

    Args:
        columns: those wanted; of CSV and JSON Lines as text.

    Raises:
        ValueError: the file is damaged.
    """
    readers = {PARQUET: _read_parquet, CSV: _read_csv, JSON_LINES: _read_json_lines}
    try:
        yield from readers[_known_kind(location)](location, columns)
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{location} cannot be read ({_first_line(error)})") from None


def read_bytes(location: str) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    system, path = _open(location)
    with system.open_input_stream(path, compression=None) as stream:
        return stream.read()


def read_table(location: str, text_columns: Sequence[str] = ()) -> pa.Table:
    """Returns all rows of a file or folder, with types as found but for `text_columns`.

    Raises:
        ValueError: a file cannot be read, or has rows that are no rows.
    """
    tables = []
    for file in list_files(location):
        check_file(file, text_columns)
        try:
            tables += _read_whole(file, text_columns)
        except (pa.ArrowException, UnicodeError, TypeError, OverflowError, OSError) as error:
            raise ValueError(f"{file} cannot be read ({_first_line(error)})") from None
    if not tables:
        raise ValueError(f"{location} holds no rows")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{location}: its files do not agree ({_first_line(error)})") from None


def _open(location: str) -> tuple[fs.FileSystem, str]:
    if "://" not in location:
        return fs.LocalFileSystem(), location
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{location} cannot be opened ({_first_line(error)})") from None


def _kind(location: str) -> tuple[str, ...] | None:
    address = location.partition("?")[0] if "://" in location else location
    path = PurePosixPath(address.lower())
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    return next((kind for kind in (PARQUET, CSV, JSON_LINES) if suffix in kind), None)


def _known_kind(location: str) -> tuple[str, ...]:
    kind = _kind(location)
    if kind is None:
        raise ValueError(f"{location} is of no known format; give .parquet, .csv or .jsonl")
    return kind


def _column_names(location: str, wanted: Sequence[str]) -> list[str]:
    """Returns the names in a file's head; of JSON Lines, whose rows may differ, those of as many
    rows as it takes to find the wanted ones."""
    kind = _known_kind(location)
    system, path = _open(location)
    if kind is PARQUET:
        with system.open_input_file(path) as file:
            return _parquet(file).schema_arrow.names
    if kind is CSV:
        with system.open_input_stream(path) as stream:
            # The reader is already at the rows of the first block.
            parse = pyarrow.csv.ParseOptions(invalid_row_handler=lambda row: "skip")
            return pyarrow.csv.open_csv(stream, parse_options=parse).schema.names
    names: dict[Any, None] = {}
    with system.open_input_stream(path) as stream:
        for line in _lines(stream):
            names |= dict.fromkeys(_parse_line(line))
            if all(name in names for name in wanted):
                break
    return [name for name in names if name is not NO_ROW]


def _read_parquet(location: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    system, path = _open(location)
    with system.open_input_file(path) as file:
        for batch in _parquet(file).iter_batches(BATCH_ROWS, columns=list(columns)):
            yield _without_views(pa.Table.from_batches([batch]))


def _without_views(table: pa.Table) -> pa.Table:
    """Returns the table with views of texts as texts: Arrow cannot take rows of them."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type):
            texts = table.column(place).cast(pa.large_string())
            table = table.set_column(place, field.name, texts)
    return table


def _parquet(file: Any) -> pq.ParquetFile:
    return pq.ParquetFile(file, page_checksum_verification=True)


def _read_csv(location: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    malformed: list[str] = []

    def keep(row: Any) -> str:
        malformed.append(row.text)
        return "skip"

    convert = pyarrow.csv.ConvertOptions(
        column_types={column: pa.string() for column in columns},
        include_columns=list(columns),
    )
    parse = pyarrow.csv.ParseOptions(invalid_row_handler=keep, newlines_in_values=True)
    with _open_csv(location) as file:
        for batch in pyarrow.csv.open_csv(file, parse_options=parse, convert_options=convert):
            file.num_rows += len(batch)
            yield pa.Table.from_batches([batch])
        file.num_rows += len(malformed)
    if malformed:
        yield pa.table({MALFORMED: malformed})


@contextlib.contextmanager
def _open_csv(location: str) -> Iterator["_Counted"]:
    """Opens a CSV file whose rows the reader counts, and checks that no quote took some of them.

    Raises:
        ValueError: one did.
    """
    system, path = _open(location)
    try:
        with system.open_input_stream(path) as stream:
            file = _Counted(stream)
            yield file
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):  # a row that is larger than what is read at once
            _check_quotes(location)
        raise
    if file.may_swallow:
        _check_quotes(location)


class _Counted:
    """A stream that counts the quotes and line ends that are read from it."""

    closed = False

    def __init__(self, stream: Any):
        self.stream, self.num_quotes, self.num_lines, self.last = stream, 0, 0, b""
        self.num_rows = 1
        """Those of names and, as its reader tells, of the table."""

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.num_quotes += data.count(b'"')
        self.num_lines += data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
        self.last = data[-1:] or self.last
        return data

    @property
    def may_swallow(self) -> bool:
        """Whether a quote may have taken rows in: one is single, or there are more lines than
        rows."""
        num_lines = self.num_lines + (self.last not in b"\r\n")
        return bool(self.num_quotes) and (self.num_quotes % 2 > 0 or num_lines > self.num_rows)


def _check_quotes(location: str) -> None:
    """Checks that no quote swallows rows, which Arrow takes for one value of many lines.

    Raises:
        ValueError: one is not closed, or is closed by what another row opens.
    """
    system, path = _open(location)
    most = csv.field_size_limit(ARROW_ROW_BYTES)
    try:
        with system.open_input_stream(path) as stream:
            text = io.TextIOWrapper(
                io.BufferedReader(stream), encoding="utf-8", errors="replace", newline=""
            )
            rows, first = csv.reader(text, strict=True), 1
            while True:
                try:
                    next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    if rows.line_num > first or "end of data" in str(error):
                        raise ValueError(
                            f"{location}: the quotes of the row that begins in line {first:,} do "
                            f"not match and take in what follows ({error}); mend it"
                        ) from None
                first = rows.line_num + 1
    finally:
        csv.field_size_limit(most)


def _read_json_lines(location: str, columns: Sequence[str]) -> Iterator[pa.Table]:
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


def _read_whole(location: str, text_columns: Sequence[str]) -> list[pa.Table]:
    kind = _known_kind(location)
    system, path = _open(location)
    if kind is PARQUET:
        with system.open_input_file(path) as file:
            return [_without_views(_parquet(file).read())]
    if kind is JSON_LINES:
        with system.open_input_stream(path) as stream:
            rows = [_parse_line(line) for line in _lines(stream)]
        return [_as_typed_table(rows, text_columns)] if rows else []
    convert = pyarrow.csv.ConvertOptions(
        column_types={column: pa.string() for column in text_columns}
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with _open_csv(location) as file:
        table = pyarrow.csv.read_csv(file, parse_options=parse, convert_options=convert)
        file.num_rows += len(table)
    return [table]


def _lines(stream: Any) -> Iterator[str]:
    """Returns the lines that are not blank; bytes that are not UTF-8 as surrogates."""
    text = io.TextIOWrapper(
        io.BufferedReader(stream), encoding="utf-8-sig", errors="surrogateescape"
    )
    return (line for line in text if line.strip())


def _parse_line(line: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # of them, a number of thousands of digits
        row = None
    if isinstance(row, dict):
        return row
    return {NO_ROW: line.strip().encode(errors="surrogateescape").decode(errors="replace")}


def _as_table(rows: list[dict], columns: Sequence[str]) -> pa.Table:
    """Returns some columns of rows, as text; a row whose value there cannot be is malformed."""
    try:
        table = pa.table({name: _texts(rows, name) for name in columns})
    except (UnicodeEncodeError, TypeError):
        return _as_table([_with_columns_of_text(row, columns) for row in rows], columns)
    if not any(NO_ROW in row for row in rows):
        return table
    return table.append_column(MALFORMED, _texts(rows, NO_ROW))


def _as_typed_table(rows: list[dict], text_columns: Sequence[str]) -> pa.Table:
    """Returns all columns of rows, with types as found; what is no UTF-8 is replaced, but in
    `text_columns`, where two values could become one.

    Raises:
        pa.ArrowInvalid: a row is no row, or a column has values of several types.
        UnicodeEncodeError: a value of `text_columns` is no UTF-8.
        TypeError: one is a list, say.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    if NO_ROW in names:
        bad = next(row[NO_ROW] for row in rows if NO_ROW in row)
        raise pa.ArrowInvalid(f"no JSON object: {bad[:100]}")
    return pa.table(
        {
            name: _texts(rows, name)
            if name in text_columns
            else _as_found([row.get(name) for row in rows])
            for name in names
        }
    )


def _with_columns_of_text(row: dict, columns: Sequence[str]) -> dict:
    try:
        for name in columns:
            (_as_text(row.get(name)) or "").encode()
    except (UnicodeEncodeError, TypeError):
        return {NO_ROW: json.dumps(row)}
    return row


def _as_found(values: list[Any]) -> pa.Array:
    """Returns JSON values, with a mark for what is no UTF-8."""
    try:
        return pa.array(values)
    except UnicodeEncodeError:
        texts = (json.dumps(value, ensure_ascii=False) for value in values)
        return pa.array([json.loads(text.encode(errors="replace")) for text in texts])


def _texts(rows: list[dict], name: Hashable) -> pa.Array:
    return pa.array([_as_text(row.get(name)) for row in rows], pa.string())


def _as_text(value: Any) -> str | None:
    """Returns an id or a time as text; none for what is missing.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, bool | list | dict):
        raise TypeError(f"{json.dumps(value)[:100]} is neither a text nor a number")
    if isinstance(value, float) and not math.isfinite(value):
        return None  # as json.dump writes what is missing
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
