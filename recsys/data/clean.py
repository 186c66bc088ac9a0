"""From rows as they come to rows that can be used, and what is wrong with the others."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.read import MALFORMED
from recsys.data.schema import ITEM, ORDER, PLACE, TIME, USER, PrepareConfig

PROBLEM, RAW = "problem", "row"
CLEAN = pa.schema(
    {
        USER: pa.string(),
        ITEM: pa.string(),
        TIME: pa.int64(),
        ORDER: pa.float64(),
        PLACE: pa.int64(),
        PROBLEM: pa.string(),
        RAW: pa.string(),
    }
)


def wanted_columns(config: PrepareConfig) -> list[str]:
    """Returns the columns of a log that are read."""
    columns = [config.user_column, config.item_column, config.time_column]
    return columns + ([config.order_column] if config.order_column else [])


def clean(
    raw: pa.Table, config: PrepareConfig, *, first_place: int, known_items: pa.Array | None
) -> pa.Table:
    """Returns the rows under the names and types of `CLEAN`; a problem is named or null.

    Args:
        first_place: where the first row stands in the log.
        known_items: ids of the item table, if there is one.
    """
    place = pa.array(np.arange(first_place, first_place + len(raw)))
    if MALFORMED in raw.column_names and config.user_column not in raw.column_names:
        text = raw[MALFORMED]
        return _table({PLACE: place, PROBLEM: _same("row cannot be read", len(raw)), RAW: text})
    user, item = (as_text(raw[name]) for name in (config.user_column, config.item_column))
    time = parse_times(raw[config.time_column])
    columns = {USER: user, ITEM: item, TIME: time, PLACE: place}
    if config.order_column:
        columns[ORDER] = _as_numbers(raw[config.order_column])
    problems = {
        "user id is missing": pc.is_null(user),
        "item id is missing": pc.is_null(item),
        "time is missing or cannot be parsed": pc.is_null(time),
    }
    if config.order_column:
        problems["order is missing or no number"] = pc.is_null(columns[ORDER])
    if known_items is not None:
        unknown = pc.invert(pc.is_in(item, value_set=known_items))
        problems["item is not in the item table"] = unknown
    if MALFORMED in raw.column_names:
        problems = {"row cannot be read": pc.is_valid(raw[MALFORMED]), **problems}
    columns[PROBLEM] = _first_problem(problems, len(raw))
    columns[RAW] = _show(raw, columns[PROBLEM])
    return _table(columns)


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """Returns ids as text; whole numbers without a decimal point; blanks are missing."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        values = array.to_numpy(zero_copy_only=False)
        whole = np.isfinite(values) & (values == np.floor(values))
        if whole[~np.isnan(values)].all():
            array = pa.array(values, mask=np.isnan(values)).cast(pa.int64())
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def parse_times(column: pa.ChunkedArray) -> pa.Array:
    """Returns times as whole numbers, dates as Unix seconds, and null for what is neither."""
    array = column.combine_chunks()
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64())
    if pa.types.is_temporal(array.type):
        return pc.divide(array.cast(pa.timestamp("us")).cast(pa.int64()), 1_000_000)
    if pa.types.is_floating(array.type):
        return _whole(array.to_numpy(zero_copy_only=False))
    text = pd.Series(array.cast(pa.string()).to_numpy(zero_copy_only=False), dtype=object)
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
    rest = np.isnan(numbers)
    if rest.any():
        dates = pd.to_datetime(text[rest], errors="coerce", utc=True, format="ISO8601")
        seconds = dates.to_numpy("datetime64[s]").astype(np.float64)
        numbers[rest] = np.where(dates.isna(), np.nan, seconds)
    return _whole(numbers)


def _whole(numbers: np.ndarray) -> pa.Array:
    usable = np.isfinite(numbers) & (np.abs(numbers) < 2**62)
    return pa.array(np.where(usable, numbers, 0).astype(np.int64), mask=~usable)


def _as_numbers(column: pa.ChunkedArray) -> pa.Array:
    values = pd.to_numeric(column.to_pandas(), errors="coerce").to_numpy(np.float64)
    return pa.array(values, mask=~np.isfinite(values))


def _first_problem(problems: dict[str, pa.Array], size: int) -> pa.Array:
    found = np.full(size, None, dtype=object)
    for name, is_so in reversed(problems.items()):
        found[np.asarray(pc.fill_null(is_so, False))] = name
    return pa.array(found, pa.string())


def _show(raw: pa.Table, problem: pa.Array) -> pa.Array:
    """Returns the rows that have a problem as text, null for the others."""
    shown = np.full(len(raw), None, dtype=object)
    bad = np.flatnonzero(np.asarray(pc.is_valid(problem)))
    for index, row in zip(bad, raw.take(bad).to_pylist(), strict=True):
        shown[index] = ", ".join(f"{key}={value!r}" for key, value in row.items())
    return pa.array(shown, pa.string())


def _same(value: str, size: int) -> pa.Array:
    return pa.array([value] * size, pa.string())


def _table(columns: dict[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    size = len(next(iter(columns.values())))
    arrays: Sequence = [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(size, f.type) for f in CLEAN
    ]
    return pa.Table.from_arrays(list(arrays), schema=CLEAN)
