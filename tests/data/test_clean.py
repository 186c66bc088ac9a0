"""What becomes of ids and times, and which problems are named."""

import datetime

import pyarrow as pa
import pytest

from recsys.data.clean import as_text, clean, parse_times
from recsys.data.read import MALFORMED
from recsys.data.schema import PrepareConfig


def _column(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, None, 30], pa.int32(), ["1", None, "30"]),
        ([1.0, None, 2.5, float("nan")], None, ["1", None, "2.5", None]),
        (["a", " b ", "", "  ", None], None, ["a", "b", None, None, None]),
        (["007"], pa.large_string(), ["007"]),
    ],
)
def test_ids_become_text(values, kind, expected):
    assert as_text(_column(values, kind)).to_pylist() == expected


def test_dictionary_encoded_ids_become_text():
    assert as_text(_column(["x", "y", "x"]).dictionary_encode()).to_pylist() == ["x", "y", "x"]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([5, None, -5], pa.int64(), [5, None, -5]),
        ([5.75, float("nan"), float("inf"), -0.5], None, [5, None, None, -1]),
        ([datetime.date(1970, 1, 2), None], None, [86_400, None]),
        ([datetime.datetime(1970, 1, 1, 0, 1, 0, 250_000)], None, [60]),
        ([1_500_000_001], pa.timestamp("ns"), [1]),
        (["12", " 7 ", "1.5e3", "2.5"], None, [12, 7, 1500, 2]),
        (
            ["1970-01-01T00:00:10Z", "1970-01-01 00:00:10+00:00", "1970-01-02"],
            None,
            [10, 10, 86400],
        ),
        (["yesterday", "now", "", "nan", "inf", "1999-99-99", None], None, [None] * 7),
        (["123456789012345678"], None, [123456789012345678]),
        (["1700000000000000001", "9" * 19], None, [1700000000000000001, None]),
        ([True], None, [None]),
    ],
)
def test_times_become_whole_numbers(values, kind, expected):
    assert parse_times(_column(values, kind))[0].to_pylist() == expected


@pytest.mark.parametrize(
    "values",
    [
        [7.25],
        ["7.25"],
        ["1970-01-01T00:00:07.25Z"],
        [datetime.datetime(1970, 1, 1, 0, 0, 7, 250_000)],
    ],
)
def test_what_was_rounded_off_is_kept(values):
    assert [part.to_pylist() for part in parse_times(_column(values))] == [[7], [0.25]]


def _problems(columns, config=None, known=None):
    rows = clean(pa.table(columns), config or PrepareConfig(), first_place=7, known_items=known)
    assert rows["place"].to_pylist() == list(range(7, 7 + len(rows)))
    return rows["problem"].to_pylist()


def test_every_kind_of_problem_is_named():
    columns = {
        "user_id": ["u", None, "u", "u", "u"],
        "item_id": ["i", "i", "", "i", "other"],
        "timestamp": ["1", "2", "3", "soon", "5"],
    }
    assert _problems(columns, known=pa.array(["i"])) == [
        None,
        "user id is missing",
        "item id is missing",
        "time is missing or cannot be parsed",
        "item is not in the item table",
    ]
    assert _problems(columns)[-1] is None


def test_order_must_be_a_number():
    columns = {"user_id": ["u", "u"], "item_id": ["i", "i"], "timestamp": [1, 2], "pos": ["0", "?"]}
    config = PrepareConfig(order_column="pos")
    assert _problems(columns, config) == [None, "order is missing or cannot be parsed"]


@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
def test_an_order_by_ids_of_events_keeps_every_digit(kind):
    order = pa.array([2**62 + 1, 2**62, 2**53 + 1]).cast(kind)
    columns = {"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": [1] * 3, "pos": order}
    config = PrepareConfig(order_column="pos")
    rows = clean(pa.table(columns), config, first_place=0, known_items=None)
    assert rows["order"].to_pylist() == [2**62 + 1, 2**62, 2**53 + 1]


@pytest.mark.parametrize("values", [[[1]], [b"\xff"]])
def test_a_column_that_holds_no_ids_is_named(values):
    columns = {"user_id": ["u"], "item_id": values, "timestamp": [1]}
    with pytest.raises(ValueError, match="the log's 'item_id' is no column of ids"):
        _problems(columns)


def test_rows_that_are_no_rows_are_shown():
    rows = clean(pa.table({MALFORMED: ["a,b"]}), PrepareConfig(), first_place=0, known_items=None)
    assert rows["problem"].to_pylist() == ["row cannot be read"]
    assert rows["row"].to_pylist() == ["a,b"]


def test_times_with_a_sign_and_beyond_64_bits():
    times, _ = parse_times(pa.chunked_array([["+5", "-5", "+5.5"]]))
    assert times.to_pylist() == [5, -5, 5]
    times, _ = parse_times(pa.chunked_array([pa.array([7, 2**63], pa.uint64())]))
    assert times.to_pylist() == [7, None]
