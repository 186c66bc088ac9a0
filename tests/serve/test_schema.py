import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.serve.schema import Limits, Request, RequestError, parse_request

LIMITS = Limits(
    max_body_bytes=2000, max_histories=3, max_history_items=4, max_k=20, max_recommendations=40
)


def parse(body: bytes | dict) -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(raw, num_items=50, limits=LIMITS)


def test_full_request():
    request = parse({"histories": [["a", 7], []], "k": 3, "exclude_seen": False})
    assert request == Request(histories=(("a", "7"), ()), k=3, exclude_seen=False)


def test_defaults():
    assert parse({"histories": [["a"]]}) == Request(histories=(("a",),), k=10, exclude_seen=True)


def test_a_model_that_ranks_new_items_only_is_asked_for_nothing_else():
    asked = b'{"histories": [["a"]], "exclude_seen": false}'
    with pytest.raises(RequestError, match=r"must be true: this model has learned") as refused:
        parse_request(asked, num_items=50, limits=LIMITS, scores_seen=False)
    assert refused.value.status == 422
    asked = asked.replace(b"false", b"true")
    assert parse_request(asked, num_items=50, limits=LIMITS, scores_seen=False).exclude_seen


def test_default_k_fits_a_small_catalogue():
    request = parse_request(b'{"histories": [[]]}', num_items=4, limits=LIMITS)
    assert request.k == 4


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"histories=a", 400, "not JSON"),
        (b"[" * 1900, 400, "nested"),
        (b" " * 2001, 413, "2000 bytes"),
        (b"null", 422, "JSON object"),
        (b"[]", 422, "JSON object"),
        (b'{"histories": [[NaN]]}', 422, "histories[0][0]"),
        ({}, 422, "'histories' is missing"),
        ({"historys": [[]]}, 422, "did you mean 'histories'"),
        ({"histories": [[]], "user": 3}, 422, "known are"),
        ({"histories": "ab"}, 422, "list of lists"),
        ({"histories": {"a": 1}}, 422, "list of lists"),
        ({"histories": []}, 422, "allowed are 1 to 3"),
        ({"histories": [[]] * 4}, 422, "has 4 lists"),
        ({"histories": [[]] * 3, "k": 14}, 422, "3 lists of 14 items are too many"),
        ({"histories": ["a", "b"]}, 422, "histories[0] must be a list"),
        ({"histories": [["a"], None]}, 422, "histories[1] must be a list"),
        ({"histories": [["a"] * 5]}, 422, "has 5 items"),
        ({"histories": [["a", None]]}, 422, "histories[0][1]"),
        ({"histories": [["a", 1.5]]}, 422, "1.5"),
        ({"histories": [["a", True]]}, 422, "histories[0][1]"),
        ({"histories": [["a", ["b"]]]}, 422, "histories[0][1]"),
        ({"histories": [["a"]], "k": 0}, 422, "from 1 to 20"),
        ({"histories": [["a"]], "k": -1}, 422, "'k'"),
        ({"histories": [["a"]], "k": 21}, 422, "from 1 to 20"),
        ({"histories": [["a"]], "k": 1.0}, 422, "'k'"),
        ({"histories": [["a"]], "k": "3"}, 422, "'k'"),
        ({"histories": [["a"]], "k": True}, 422, "'k'"),
        ({"histories": [["a"]], "k": None}, 422, "'k'"),
        ({"histories": [["a"]], "k": 10**400}, 422, "'k'"),
        ({"histories": [["a"]], "exclude_seen": 1}, 422, "true or false"),
        ({"histories": [["a"]], "exclude_seen": "yes"}, 422, "true or false"),
    ],
)
def test_rubbish_is_refused_with_its_reason(body, status, words):
    with pytest.raises(RequestError) as caught:
        parse(body)
    assert caught.value.status == status
    assert words in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_number_that_python_does_not_read_is_told_so():
    limits = replace(LIMITS, max_body_bytes=10_000)
    with pytest.raises(RequestError, match="too many digits: send ids as text") as caught:
        parse_request(b'{"k": ' + b"1" * 5000 + b"}", num_items=4, limits=limits)
    assert caught.value.status == 422


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.one_of(st.binary(max_size=50), JSON_VALUES.map(lambda v: json.dumps(v).encode())))
def test_any_bytes_are_a_request_or_a_request_error(body):
    try:
        outcome = parse(body)
    except RequestError as error:
        outcome = error
    assert isinstance(outcome, Request) or outcome.status in (400, 413, 422)


@pytest.mark.parametrize("value", [0, -1, 1.5, "9"])
def test_limits_are_positive(value):
    with pytest.raises(ValueError, match="max_k must be a positive"):
        Limits(max_k=value)
