"""From rows as they come to rows that can be used, and what is wrong with the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from recsys.data.read import MALFORMED
from recsys.data.schema import (
    FRACTION,
    ITEM,
    ORDER,
    ORDER_FRACTION,
    PLACE,
    TIME,
    USER,
    PrepareConfig,
)

PROBLEM, RAW = "problem", "row"
MICRO = 1_000_000
LARGEST = 2.0**62
EXACT = "^-?([0-9]{1,18}|[1-8][0-9]{18})$"  # what an int64 holds, of all but the very largest
CLEAN = pa.schema(
    {
        USER: pa.large_string(),  # of these a log may have more than 2 GiB
        ITEM: pa.large_string(),
        TIME: pa.int64(),
        FRACTION: pa.float64(),
        ORDER: pa.int64(),
        ORDER_FRACTION: pa.float64(),
        PLACE: pa.int64(),
        PROBLEM: pa.string(),
        RAW: pa.large_string(),
    }
)

pc: Any = pyarrow.compute  # its functions are made when it is imported


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

    Raises:
        ValueError: a column of ids holds other things.
    """
    place = pa.array(np.arange(first_place, first_place + len(raw)))
    if MALFORMED in raw.column_names and config.user_column not in raw.column_names:
        problem = _same("row cannot be read", len(raw))
        return _table({PLACE: place, PROBLEM: problem, RAW: raw[MALFORMED]})
    user, item = (_ids(raw, name) for name in (config.user_column, config.item_column))
    time, fraction = parse_times(raw[config.time_column])
    columns = {USER: user, ITEM: item, TIME: time, FRACTION: fraction, PLACE: place}
    if config.order_column:
        columns[ORDER], columns[ORDER_FRACTION] = parse_times(raw[config.order_column])
    problems = {
        "user id is missing": pc.is_null(user),
        "item id is missing": pc.is_null(item),
        "time is missing or cannot be parsed": pc.is_null(time),
    }
    if config.order_column:
        problems["order is missing or cannot be parsed"] = pc.is_null(columns[ORDER])
    if known_items is not None:
        unknown = pc.invert(pc.is_in(item, value_set=known_items))
        problems["item is not in the item table"] = unknown
    if MALFORMED in raw.column_names:
        problems = {"row cannot be read": pc.is_valid(raw[MALFORMED]), **problems}
    columns[PROBLEM] = _first_problem(problems, len(raw))
    columns[RAW] = _show(raw, columns[PROBLEM])
    return _table(columns)


def _ids(raw: pa.Table, name: str) -> pa.Array:
    try:
        return as_text(raw[name])
    except pa.ArrowException as error:
        raise ValueError(f"the log's {name!r} is no column of ids ({error})") from None


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """Returns ids as text; whole numbers without a decimal point; blanks are missing."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        return _numbers_as_text(array.to_numpy(zero_copy_only=False).astype(np.float64))
    text = pc.utf8_trim_whitespace(array.cast(pa.string()))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _numbers_as_text(values: np.ndarray) -> pa.Array:
    missing = ~np.isfinite(values)
    whole = ~missing & (values == np.floor(values)) & (np.abs(values) < LARGEST)
    integers = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
    others = pa.array(values, mask=missing).cast(pa.string())
    return pc.if_else(pa.array(whole), integers, others)


def parse_times(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Returns times rounded down to whole numbers, dates as Unix seconds, null for what is neither;
    and what was rounded off."""
    array = column.combine_chunks()
    if pa.types.is_integer(array.type):
        if pa.types.is_uint64(array.type):  # what no int64 holds is no time
            fits = pc.less_equal(array, pa.scalar(2**63 - 1, pa.uint64()))
            array = pc.if_else(fits, array, pa.scalar(None, pa.uint64()))
        return array.cast(pa.int64()), pa.array(np.zeros(len(array)))
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        moments = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        micros = moments.fill_null(0).to_numpy(zero_copy_only=False)
        return _whole(micros // MICRO, (micros % MICRO) / MICRO, ~np.asarray(moments.is_null()))
    if pa.types.is_floating(array.type):
        return _split(array.to_numpy(zero_copy_only=False).astype(np.float64))
    return _parse_text(array.cast(pa.string()))


def _parse_text(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Returns what `parse_times` does, of numbers and ISO 8601 dates written out."""
    text = pc.utf8_trim_whitespace(array)
    exact = pc.fill_null(pc.match_substring_regex(text, EXACT), False)
    integers = pc.if_else(exact, text, "0").cast(pa.int64()).to_numpy(zero_copy_only=False)
    is_exact = np.asarray(exact)
    whole, fraction, usable = integers.copy(), np.zeros(len(text)), is_exact.copy()
    rest = np.flatnonzero(~is_exact)
    if len(rest):
        words = pd.Series(text.take(pa.array(rest)).to_pylist(), dtype=object)
        numbers = np.asarray(pd.to_numeric(words, errors="coerce"), np.float64)
        # Else pandas takes "now" for a date.
        dated = words.where(words.str.match(r"\d{4}-").fillna(False).astype(bool))
        dates = pd.to_datetime(dated, errors="coerce", utc=True, format="ISO8601")
        micros = dates.dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
        is_number = np.isfinite(numbers) & (np.abs(numbers) < LARGEST)
        floor = np.floor(np.where(is_number, numbers, 0))
        whole[rest] = np.where(is_number, floor.astype(np.int64), micros // MICRO)
        fraction[rest] = np.where(is_number, numbers - floor, (micros % MICRO) / MICRO)
        usable[rest] = is_number | (np.isnan(numbers) & dates.notna().to_numpy())
    return _whole(whole, fraction, usable)


def _split(numbers: np.ndarray) -> tuple[pa.Array, pa.Array]:
    usable = np.isfinite(numbers) & (np.abs(numbers) < LARGEST)
    numbers = np.where(usable, numbers, 0)
    return _whole(np.floor(numbers), numbers - np.floor(numbers), usable)


def _whole(
    whole: np.ndarray, fraction: np.ndarray, usable: np.ndarray
) -> tuple[pa.Array, pa.Array]:
    return pa.array(whole.astype(np.int64), mask=~usable), pa.array(np.where(usable, fraction, 0.0))


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
