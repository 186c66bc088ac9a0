"""Texts with categories, from tables worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest

from recsys.data.texts import Titles, label, read_texts

TABLE = pa.table(
    {
        "title": ["a", "b", None, "d", "e", "f"],
        "genres": [["x", "y"], ["y"], ["x"], ["z", "y"], ["x"], ["z", "y", "y"]],
        "kind": ["p", "q", "p", " p ", None, "q"],
    }
)


def test_items_with_several_of_the_frequent_categories_are_left_out():
    texts = label(TABLE, ["title"], "genres", num_categories=2)
    # y stands at four items and x at three; the first has both, and z counts nothing.
    assert texts.texts_N == ["b", "d", "e", "f"]
    assert texts.categories == ("y", "x")
    assert texts.labels_N.tolist() == [0, 0, 1, 0]


def test_a_column_of_plain_values_and_what_has_no_text_or_category():
    texts = label(TABLE, ["title"], "kind")
    assert texts.categories == ("p", "q")
    assert texts.texts_N == ["a", "b", "d", "f"]
    assert texts.labels_N.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "kinds", [[None, "p", "", "q", " "], [float("nan"), 1.0, None, 2.0, float("nan")]]
)
def test_what_is_missing_is_no_category(kinds):
    table = pa.table({"title": list("abcde"), "kind": kinds})
    assert label(table, ["title"], "kind").texts_N == ["b", "d"]


def test_a_split_is_a_partition_that_follows_from_the_seed():
    texts = label(TABLE, ["title"], "kind")
    rest, part = texts.split(0.25, seed=1)
    assert (len(rest.texts_N), len(part.texts_N)) == (3, 1)
    assert sorted(rest.texts_N + part.texts_N) == sorted(texts.texts_N)
    kinds = dict(zip(texts.texts_N, texts.labels_N, strict=True))
    assert [kinds[text] for text in rest.texts_N] == rest.labels_N.tolist()
    assert texts.split(0.25, seed=1)[1].texts_N == part.texts_N
    with pytest.raises(ValueError, match="4 texts are too few"):
        texts.split(0.1, seed=0)


@pytest.mark.parametrize(
    ("text_columns", "category", "message"),
    [
        (["plot"], "kind", "has no column 'plot'; it has title, genres, kind"),
        (["title"], "colour", "has no column 'colour'"),
        (["title", "kind"], "kind", "'kind' is what the text is to tell"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_a_line(text_columns, category, message):
    with pytest.raises(ValueError, match=message):
        label(TABLE, text_columns, category)


def test_one_category_is_too_few(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("title,kind\na,p\nb,p\n")
    with pytest.raises(ValueError, match="two categories are needed, and 'kind' has only 'p'"):
        read_texts(str(path), ["title"], "kind")


def test_a_history_is_its_last_titles_the_newest_first(titled):
    titles = Titles(titled, ["title"], num_last=3)
    assert titles.text(np.array([5, 1, 3, 2])) == "t2; t1"
    assert titles.text(np.array([4])) == "t4"
    assert titles.items == tuple(titled.item_ids.to_pylist()[1:])


def test_next_items_are_of_the_training_part_and_their_texts_end_before_them(titled):
    titles = Titles(titled, ["title"], num_last=100)
    texts = titles.next_items(num_per_user=2)
    expected = [
        (titles.text(history[:target]), history[target] - 1)
        for user, length in enumerate(titled.train_length_U)
        for history in [titled.history(user)]
        for target in (length - 2, length - 1)
        if target >= 1
    ]
    assert list(zip(texts.texts_N, texts.labels_N, strict=True)) == expected
    assert texts.categories == titles.items


def test_titles_that_are_not_there_are_said(dataset, titled):
    with pytest.raises(ValueError, match="has no column 'title'"):
        Titles(dataset, ["title"])
    with pytest.raises(ValueError, match="num_last"):
        Titles(titled, ["title"], num_last=0)
    with pytest.raises(ValueError, match="num_per_user"):
        Titles(titled, ["title"]).next_items(0)
