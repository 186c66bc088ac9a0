"""What the endpoint accepts and answers: the checks, the limits, and the words of its errors."""

import difflib
import json
import reprlib
from dataclasses import dataclass
from typing import Any, TypedDict

EXAMPLE = '{"histories": [["1", "2"]], "k": 10, "exclude_seen": true}'
DEFAULT_K = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    max_body_bytes: int = 1 << 20
    """Bytes of a request body."""
    max_histories: int = 256
    """Histories in one request."""
    max_history_items: int = 10_000
    """Items in one history."""
    max_k: int = 1000
    """Items in one list of recommendations."""
    max_recommendations: int = 20_000
    """Items in all lists of one answer."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One checked request."""

    histories: tuple[tuple[str, ...], ...]
    """External item ids, oldest first."""
    k: int
    """How many items to recommend for each history."""
    exclude_seen: bool
    """Whether items of the history are left out of its recommendations."""


class Item(TypedDict):
    """One recommended item."""

    item_id: str
    score: float


class Recommendation(TypedDict):
    """The answer to one history."""

    items: list[Item]
    unknown_items: list[str]
    popular: bool


class RequestError(ValueError):
    """A request that cannot be answered, with the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def parse_request(
    body: bytes, *, num_items: int, limits: Limits, scores_seen: bool = True
) -> Request:
    """Returns the request that `body` states.

    Args:
        scores_seen: whether the model's scores of items of the history mean anything.

    Raises:
        RequestError: 413 for a body that is too large, 400 for one that is not JSON, 422 for JSON
            of another shape; the message says what to change.
    """
    if len(body) > limits.max_body_bytes:
        raise too_large(limits)
    fields = _object(_decode(body))
    exclude_seen = _flag(fields, "exclude_seen")
    if not (exclude_seen or scores_seen):
        raise RequestError(
            422,
            "'exclude_seen' must be true: this model has learned to rank what is new to a user, "
            "and nothing else; one that also ranks what was there before is trained so",
        )
    histories, k = _histories(fields, limits), _k(fields, min(num_items, limits.max_k))
    if len(histories) * k > limits.max_recommendations:
        raise RequestError(
            422,
            f"{len(histories)} lists of {k} items are too many for one answer; allowed are "
            f"{limits.max_recommendations} items in all",
        )
    return Request(histories=histories, k=k, exclude_seen=exclude_seen)


def too_large(limits: Limits) -> RequestError:
    """Returns the error for a body of more bytes than allowed."""
    return RequestError(
        413, f"the body has more than {limits.max_body_bytes} bytes; send fewer histories at once"
    )


def encode(value: Any) -> bytes:
    """Returns `value` as JSON bytes."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise RequestError(400, "the body is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"the body is not JSON: {error}; try {EXAMPLE}") from None
    except ValueError:  # Python reads no numbers of thousands of digits
        raise RequestError(422, "a number has too many digits: send ids as text") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(422, f"the body must be a JSON object, such as {EXAMPLE}")
    known = list(Request.__dataclass_fields__)
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise RequestError(422, f"unknown key {reprlib.repr(key)}; {hint}")
    return value


def _histories(fields: dict[str, Any], limits: Limits) -> tuple[tuple[str, ...], ...]:
    histories = fields.get("histories")
    if not isinstance(histories, list):
        problem = "must be a list of lists" if "histories" in fields else "is missing"
        raise RequestError(422, f"'histories' {problem}; try {EXAMPLE}")
    if not 1 <= len(histories) <= limits.max_histories:
        raise RequestError(
            422, f"'histories' has {len(histories)} lists; allowed are 1 to {limits.max_histories}"
        )
    return tuple(_history(row, history, limits) for row, history in enumerate(histories))


def _history(row: int, history: Any, limits: Limits) -> tuple[str, ...]:
    where = f"histories[{row}]"
    if not isinstance(history, list):
        raise RequestError(
            422, f"{where} must be a list of item ids, oldest first, not {reprlib.repr(history)}"
        )
    if len(history) > limits.max_history_items:
        raise RequestError(
            422, f"{where} has {len(history)} items; allowed are {limits.max_history_items}"
        )
    return tuple(_item_id(f"{where}[{column}]", item) for column, item in enumerate(history))


def _item_id(where: str, item: Any) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, int) and not isinstance(item, bool):
        return str(item)
    raise RequestError(
        422, f"{where} must be an item id (text or a whole number), not {reprlib.repr(item)}"
    )


def _k(fields: dict[str, Any], most: int) -> int:
    k = fields.get("k", min(DEFAULT_K, most))
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        raise RequestError(
            422, f"'k' must be a whole number from 1 to {most}, not {reprlib.repr(k)}"
        )
    return k


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, True)
    if not isinstance(value, bool):
        raise RequestError(422, f"'{name}' must be true or false, not {reprlib.repr(value)}")
    return value
