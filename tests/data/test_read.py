"""Reading files of every format, and files that are none."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from recsys.data.read import (
    MALFORMED,
    check_file,
    identify,
    list_files,
    other_files,
    read_batches,
    read_table,
)

COLUMNS = ["user_id", "item_id"]
CSV = "user_id,extra,item_id\nu1,7,i1\nu2,8,\n"
JSON = '{"user_id": "u1", "item_id": "i1"}\n\n{"user_id": "u2", "extra": [1]}\n'
ROWS = [{"user_id": "u1", "item_id": "i1"}, {"user_id": "u2", "item_id": None}]
CSV_ROWS = [ROWS[0], {"user_id": "u2", "item_id": ""}]


def _rows(path, columns=COLUMNS):
    check_file(str(path), columns)
    return [row for table in read_batches(str(path), columns) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("name", "text", "rows"), [("log.csv", CSV, CSV_ROWS), ("log.jsonl", JSON, ROWS)]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_text_formats(tmp_path, name, text, rows, compressed):
    path = tmp_path / (name + ".gz" if compressed else name)
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    assert _rows(path) == rows


def test_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "log.parquet")
    assert _rows(tmp_path / "log.parquet") == ROWS
    assert _rows(f"file://{tmp_path}/log.parquet") == ROWS


def test_files_of_a_folder_come_by_name_without_hidden_ones(tmp_path):
    for name in (
        "b.csv",
        "a.jsonl",
        "c/d.parquet",
        "notes.txt",
        ".a.csv",
        "_SUCCESS.csv",
        "_log/0.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [file.removeprefix(f"{tmp_path}/") for file in list_files(str(tmp_path))]
    assert names == ["a.jsonl", "b.csv", "c/d.parquet"]


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="holds no"):
        list_files(str(tmp_path))
    with pytest.raises(ValueError, match="does not exist"):
        list_files(str(tmp_path / "gone.csv"))
    with pytest.raises(ValueError, match="cannot be opened"):
        list_files("nowhere://bucket/log.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "is empty"),
        ("log.xls", b"x", "no known format"),
        ("log.csv", b"user,item_id\nu,i\n", "no column 'user_id'; it has user, item_id"),
        ("log.parquet", b"PAR1 and no more", "cannot be read"),
        ("log.csv.gz", b"not gzip", "cannot be read"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        check_file(str(tmp_path / name), COLUMNS)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_truncated_files_are_refused(tmp_path):
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"user_id": [str(n) for n in range(9999)]}), whole)
    (tmp_path / "half.parquet").write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"half.parquet cannot be read"):
        check_file(str(tmp_path / "half.parquet"), ["user_id"])
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(CSV.encode() * 999)[:-20])
    with pytest.raises(ValueError, match=r"half.csv.gz cannot be read"):
        _rows(tmp_path / "half.csv.gz")


def test_malformed_csv_rows_come_as_text(tmp_path):
    (tmp_path / "log.csv").write_text(CSV + "u3,i3\n")
    assert _rows(tmp_path / "log.csv") == [*CSV_ROWS, {MALFORMED: "u3,i3"}]


def test_malformed_json_lines_come_as_text(tmp_path):
    (tmp_path / "log.jsonl").write_text(JSON + '{"user_id": \n[1]\n')
    rows = _rows(tmp_path / "log.jsonl")
    assert [row[MALFORMED] for row in rows] == [None, None, '{"user_id":', "[1]"]


def test_a_line_break_inside_quotes_is_no_new_row(tmp_path):
    (tmp_path / "log.csv").write_text('user_id,item_id,note\nu1,i1,"two\nlines"\n')
    assert _rows(tmp_path / "log.csv") == ROWS[:1]


def test_numbers_of_json_become_text(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"user_id": 1, "item_id": 2.0}\n')
    assert _rows(tmp_path / "log.jsonl") == [{"user_id": "1", "item_id": "2"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("items.csv", "item_id,year\n007,1999\n"),
        ("items.jsonl", '{"item_id": "007"}\n{"item_id": "8", "year": 1999}\n'),
    ],
)
def test_tables_keep_ids_as_text_and_all_columns(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    table = read_table(str(tmp_path / name), ["item_id"])
    assert table["item_id"].to_pylist()[0] == "007"
    assert table["year"].to_pylist()[-1] == 1999


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("items.csv", "item_id,year\na\n"),
        ("items.jsonl", '{"item_id": "a"}\nrubbish\n'),
        ("items.jsonl", '{"item_id": "a", "x": 1}\n{"item_id": "b", "x": "one"}\n'),
        ("items.jsonl", '{"item_id": "a", "x": "one"}\n{"item_id": "b", "x": 3}\n'),
        ("items.jsonl", '{"item_id": "a", "x": 100000000000000000000}\n'),
        ("items.jsonl", "\n"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        read_table(str(tmp_path / name), ["item_id"])


def test_a_uri_keeps_its_host_and_options(monkeypatch, tmp_path):
    (tmp_path / "a b.csv").write_text(CSV)

    def open_uri(location):
        assert location.endswith("?endpoint_override=localhost:9000")
        return fs.LocalFileSystem(), str(tmp_path)

    monkeypatch.setattr("recsys.data.read._open", open_uri)
    found = list_files("s3://bucket/folder?endpoint_override=localhost:9000")
    assert found == ["s3://bucket/folder/a%20b.csv?endpoint_override=localhost:9000"]


def test_a_changed_file_is_another_whatever_its_address(tmp_path):
    path = tmp_path / "log.csv"
    for address in (str(path), f"file://{path}"):
        path.write_text(CSV)
        before = identify(address)
        assert identify(address) == before
        path.write_text(CSV + "u3,9,i3\n")
        assert identify(address) != before


def test_what_json_writes_for_missing_is_missing_and_a_field_may_be_called_malformed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": NaN, "item_id": "i1", "malformed": "no"}\n')
    assert _rows(path) == [{"user_id": None, "item_id": "i1"}]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('u1,i1,a\nu2,i2,"b\n' + "u3,i3,c\n" * 50, 3),  # never closed
        ('u1,i1,"a\nu2,i2,b\nu3,i3,"c"\nu4,i4,d\n', 2),  # closed by what another row opens
        ('u1,i1,"a\nu2,i2,"b\nu3,i3,c', 2),  # the same, and no line end at the end
        ('u1,i1,"a\ru2,i2,"b\ru3,i3,c\r', 2),
    ],
)
def test_a_quote_that_takes_rows_in_is_told(tmp_path, text, line):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,note\n" + text, newline="")
    with pytest.raises(ValueError, match=rf"log.csv: the quotes .* begins in line {line} do not"):
        list(read_batches(str(path), COLUMNS))
    with pytest.raises(ValueError, match=rf"begins in line {line} do not match"):
        read_table(str(path), ["item_id"])


@pytest.mark.parametrize(
    "text",
    [
        '"u1","i1","say ""two\n\nlines"""\nu2,,5" screen\n',
        'u1,i1,"abc" def\n\n\nu2,,"abc" \n',
        'u1,i1,"' + "long text\n" * 30_000 + '"\n\nu2,,x\n',
        '\r\nu1,i1,"a\r\nb"\r\n\r\nu2,,5"',
    ],
)
def test_quotes_and_line_breaks_in_their_place_are_read(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,note\n" + text, newline="")
    assert _rows(path) == CSV_ROWS


def test_a_quote_that_takes_in_more_than_arrow_reads_at_once_is_told(tmp_path):
    path = tmp_path / "log.csv"
    rows = "u3,i3,some more\n" * 200_000
    path.write_text('user_id,item_id,note\nu1,i1,a\nu2,i2,"b\n' + rows)
    with pytest.raises(ValueError, match="begins in line 3 do not match"):
        list(read_batches(str(path), COLUMNS))
    with pytest.raises(ValueError, match="begins in line 3 do not match"):
        read_table(str(path), ["item_id"])


def test_bytes_of_another_encoding_are_told_as_such(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b'user_id,item_id,note\nu1,caf\xe9,"a\n\nb"\n')
    with pytest.raises(ValueError, match="UTF8"):
        list(read_batches(str(path), COLUMNS))


def test_json_lines_that_are_no_text_are_malformed(tmp_path):
    path = tmp_path / "log.jsonl"
    good = b'{"user_id": "u1", "item_id": "i1"}\n'
    half = b'{"user_id": "u1", "item_id": "\\ud800"}\n'
    long = b'{"user_id": "u1", "item_id": ' + b"7" * 5000 + b"}\n"
    other = b'{"user_id": "u1", "item_id": "i1", "note": "caf\xe9 \\ud800"}\n'
    path.write_bytes(good + other + b'{"user_id": "u1", "item_id": "caf\xe9"}\n' + half + long)
    malformed = [row[MALFORMED] for row in _rows(path)]
    assert malformed[:2] == [None, None]
    assert malformed[2] == '{"user_id": "u1", "item_id": "caf\\udce9"}'
    assert [text[:20] for text in malformed[3:]] == ['{"user_id": "u1", "i'] * 2


def test_tables_of_json_keep_items_whose_text_is_in_part_no_text(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"item_id": "a", "title": "caf\xe9", "tags": ["\\ud800", "b"]}\n')
    (item,) = read_table(str(path), ["item_id"]).to_pylist()
    assert item == {"item_id": "a", "title": "caf?", "tags": ["?", "b"]}
    path.write_bytes(b'{"item_id": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"items.jsonl cannot be read"):
        read_table(str(path), ["item_id"])


def test_what_json_has_for_other_things_is_no_id(tmp_path):
    path = tmp_path / "log.jsonl"
    values = ('{"a": 1}', "[1]", "true", "null")
    path.write_text("".join(f'{{"user_id": "u", "item_id": {value}}}\n' for value in values))
    rows = _rows(path)
    assert [row[MALFORMED] for row in rows] == [
        *(f'{{"user_id": "u", "item_id": {value}}}' for value in values[:3]),
        None,
    ]
    assert rows[3]["item_id"] is None
    with pytest.raises(ValueError, match=r"cannot be read .*neither a text nor a number"):
        read_table(str(path), ["item_id"])


@pytest.mark.parametrize("text", ["NA", "null", "nan", "n/a", '"NULL"'])
def test_an_id_that_reads_like_a_missing_value_is_one(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id\nu1,{text}\n")
    assert _rows(path) == [{"user_id": "u1", "item_id": text.strip('"')}]


def test_a_column_that_is_there_twice_is_told(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,user_id\nu1,i1,u2\n")
    with pytest.raises(ValueError, match="has the column 'user_id' more than once"):
        check_file(str(path), COLUMNS)


def test_a_column_that_no_json_line_has_is_told_with_those_that_are_there(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"user": 1}\n{"user": 2, "item_id": 2}\n')
    with pytest.raises(ValueError, match="no column 'user_id'; it has user, item_id"):
        check_file(str(tmp_path / "log.jsonl"), COLUMNS)
    (tmp_path / "log.jsonl").write_text('{"event": "start"}\n' * 2000 + JSON)
    check_file(str(tmp_path / "log.jsonl"), COLUMNS)


def test_text_of_another_encoding_is_refused_in_one_line(tmp_path):
    (tmp_path / "log.csv").write_bytes(CSV.encode("utf-16"))
    with pytest.raises(ValueError, match=r"log.csv cannot be read"):
        check_file(str(tmp_path / "log.csv"), COLUMNS)


def test_views_of_texts_are_read_as_texts(tmp_path):
    views = {name: pa.array(["a", None], pa.string_view()) for name in COLUMNS}
    pq.write_table(pa.table(views), tmp_path / "log.parquet")
    (table,) = read_batches(str(tmp_path / "log.parquet"), COLUMNS)
    assert table.take([1]).to_pylist() == [{"user_id": None, "item_id": None}]
    assert read_table(str(tmp_path / "log.parquet")).take([0]).num_rows == 1


def test_other_files_of_a_folder_are_named(tmp_path):
    for name in ("a.csv", "b.tsv", ".c", "_SUCCESS"):
        (tmp_path / name).touch()
    assert other_files(str(tmp_path)) == ["b.tsv"]
    assert other_files(str(tmp_path / "a.csv")) == []
