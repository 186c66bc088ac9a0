"""What is known of items beside the log: features of their text, their images, given embeddings.

`dataset/content/` holds an array of V rows for each kind of content (text.npy, image.npy,
embedding.npy): float16, every row of length 1, or of zeros where an item has nothing (or what
cannot be used) and for the padding item. content.json says what each was made from.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow.types import is_floating, is_integer

from recsys.config import require_at_least
from recsys.files import read_json, write_json

CONTENT, FACTS = "content", "content.json"
BATCH_SIZE = 64  # items encoded at a time
NUM_EXAMPLES = 3
HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
HUB_TIMEOUT = 10
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")

Kind = Literal["text", "image", "embedding"]
Encoder = Callable[[Sequence[Any]], np.ndarray]
"""Texts or images to features_NF; a row of zeros for what cannot be used."""


@dataclass(frozen=True, kw_only=True)
class ContentConfig:
    """Which columns of the item table become features of items; no column, no content."""

    text_columns: tuple[str, ...] = ()
    """Columns that are joined to an item's text, such as title and plot."""
    text_encoder: str = "bert-base-uncased"
    """A BERT-like encoder: a directory with config.json, tokenizer and .safetensors weights, or a
    name on the Hugging Face hub."""
    max_tokens: int = 64
    """Tokens of a text that are read."""
    image_column: str | None = None
    """A column of JPEG, PNG or WebP images: their bytes, or their paths or URIs. Files are read
    when the dataset is made: one that changes later, under the same name, does not make it anew."""
    image_encoder: str = "google/vit-base-patch16-224"
    """A vision encoder: a directory with config.json, preprocessor_config.json and .safetensors
    weights, or a name on the Hugging Face hub."""
    embedding_column: str | None = None
    """A column of vectors that were made elsewhere: lists of numbers, all of one length."""
    num_workers: int = 2
    """Processes that encode."""

    def __post_init__(self) -> None:
        require_at_least(1, max_tokens=self.max_tokens, num_workers=self.num_workers)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        others = (self.image_column, self.embedding_column)
        return (*self.text_columns, *(column for column in others if column is not None))

    @property
    def columns_kept_apart(self) -> tuple[str, ...]:
        """Columns that are features only: too large to go with every model."""
        return self.columns[len(self.text_columns) :]

    @property
    def encoders(self) -> dict[Kind, str]:
        """The encoders that are needed."""
        encoders: dict[Kind, str] = {}
        if self.text_columns:
            encoders["text"] = self.text_encoder
        if self.image_column is not None:
            encoders["image"] = self.image_encoder
        return encoders


class _Source(NamedTuple):
    """One kind of content before it is encoded."""

    kind: Kind
    columns: tuple[str, ...]
    encoder: str | None
    values_V: list[Any]
    """What is to be encoded; None where an item has nothing."""
    encode: Callable[[list[Any]], np.ndarray]


def check_content(config: ContentConfig, item_table: pa.Table | None) -> None:
    """Checks what can be known of columns and encoders before a log is read.

    Raises:
        ValueError: a column, a package or a part of an encoder is missing.
    """
    if not config.columns:
        return
    if item_table is None:
        raise ValueError("content needs an item table: say where it is with --items")
    require_columns(item_table, config.columns)
    for kind, encoder in config.encoders.items():
        locate(encoder, kind)


def require_columns(item_table: pa.Table, columns: Sequence[str]) -> None:
    """Raises a ValueError that names those of `columns` which an item table does not have."""
    missing = [column for column in columns if column not in item_table.column_names]
    if missing:
        names = ", ".join(item_table.column_names)
        raise ValueError(
            f"the item table has no column {', '.join(map(repr, missing))}; it has {names}"
        )


def locate(encoder: str, kind: Kind) -> Path:
    """Returns the directory of an encoder, fetched from the hub unless `encoder` is one.

    Raises:
        ValueError: it can neither be found nor fetched, or lacks a part.
    """
    if find_spec("transformers") is None or find_spec("PIL") is None:
        raise ValueError("content needs more packages: pip install 'recsys[content]'")
    directory = Path(encoder) if Path(encoder).is_dir() else _fetch(encoder)
    needed = {
        "config.json": ("config.json",),
        "weights (.safetensors; pickled ones are not read)": ("*.safetensors",),
        **({"tokenizer": TOKENIZER_FILES} if kind == "text" else {}),
        **({"preprocessor_config.json": ("preprocessor_config.json",)} if kind == "image" else {}),
    }
    for part, patterns in needed.items():
        if not any(True for pattern in patterns for _ in directory.glob(pattern)):
            raise ValueError(f"{encoder} is not an encoder of {kind}: it has no {part}")
    return directory


def _fetch(name: str) -> Path:
    # Not above: only a part of the users has it installed.
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=list(HUB_FILES), etag_timeout=HUB_TIMEOUT)
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no directory and cannot be fetched from the Hugging Face hub "
            f"({str(error).splitlines()[0]}); give a directory with config.json, weights "
            "(.safetensors) and tokenizer or preprocessor_config.json"
        ) from None


def encode(make_encoder: Callable[[], Encoder], values: Sequence[Any]) -> np.ndarray:
    """Returns features_NF of `values`, computed in this process."""
    encoder = make_encoder()
    starts = range(0, len(values), BATCH_SIZE)
    return np.concatenate([encoder(values[at : at + BATCH_SIZE]) for at in starts])


def write_content(
    directory: Path,
    config: ContentConfig,
    items: pa.Table,
    encode: Callable[[Callable[[], Encoder], Sequence[Any]], np.ndarray] = encode,
) -> None:
    """Writes `content/` into the dataset in `directory`, and says what could not be used.

    Args:
        items: item_id and the columns of `config`, row i that of item i; row 0 is null.
        encode: runs an encoder over values.

    Raises:
        ValueError: no item has what is asked for, or none that can be used, or a column is of
            another type.
    """
    (directory / CONTENT).mkdir(exist_ok=True)
    facts = {}
    for source in _sources(config, items, encode):
        rows = [row for row, value in enumerate(source.values_V) if value is not None]
        if not rows:
            raise ValueError(f"no item has {source.kind} in {', '.join(source.columns)}")
        # Texts of similar length share a batch, so that little padding is computed.
        rows.sort(key=lambda row: len(source.values_V[row]))
        found_NF = source.encode([source.values_V[row] for row in rows])
        features_VF = np.zeros((len(items), found_NF.shape[1]), np.float16)
        features_VF[rows] = found_NF
        np.save(directory / CONTENT / f"{source.kind}.npy", features_VF)
        broken = sorted(np.array(rows)[~found_NF.any(axis=1)].tolist())
        if len(broken) == len(rows):
            raise ValueError(
                f"none of {len(rows):,} values in {', '.join(source.columns)} can be used as "
                f"{source.kind}, such as that of item {items['item_id'][broken[0]].as_py()}"
            )
        facts[source.kind] = {
            "columns": list(source.columns),
            "encoder": source.encoder,
            "max_tokens": config.max_tokens if source.kind == "text" else None,
            "width": found_NF.shape[1],
            "num_without": len(items) - 1 - len(rows),
            "num_broken": len(broken),
            "broken": [items["item_id"][row].as_py() for row in broken[:NUM_EXAMPLES]],
        }
        print(_describe(source.kind, facts[source.kind]), flush=True)
    write_json(directory / CONTENT / FACTS, facts)


def _describe(kind: Kind, facts: dict[str, Any]) -> str:
    broken = f" (such as {', '.join(facts['broken'])})" if facts["broken"] else ""
    return (
        f"content: {kind}, {facts['width']} wide; {facts['num_without']:,} items have none, "
        f"{facts['num_broken']:,} have what cannot be used{broken}"
    )


def facts_of(dataset: Path, kind: Kind) -> dict[str, Any]:
    """Returns what content.json says of a kind.

    Raises:
        ValueError: the dataset has no such content.
    """
    path = dataset / CONTENT / FACTS
    known = read_json(path) if path.exists() else {}
    if kind not in known:
        raise ValueError(
            f"{dataset} has no content of kind {kind!r}: prepare it with --content.{kind}-..."
        )
    return known[kind]


def load_content(dataset: Path, kinds: Sequence[Kind]) -> np.ndarray:
    """Returns features_VF of some kinds of content beside each other, float16.

    Each kind is centred, since encoders give all items much in common; an item that has nothing
    stays at zero, where the average item stands.

    Raises:
        ValueError: the dataset has no such content.
    """
    for kind in kinds:
        facts_of(dataset, kind)
    directory = dataset / CONTENT
    return np.concatenate([_centred(np.load(directory / f"{kind}.npy")) for kind in kinds], axis=1)


def _centred(features_VF: np.ndarray) -> np.ndarray:
    has_content_V1 = np.any(features_VF, axis=1, keepdims=True)
    return ((features_VF - mean_of(features_VF)) * has_content_V1).astype(np.float16)


def mean_of(features_VF: np.ndarray) -> np.ndarray:
    """Returns mean_F over the items that have something, float32."""
    num_described = np.any(features_VF, axis=1).sum(dtype=np.float32)
    return features_VF.sum(axis=0, dtype=np.float32) / num_described


def normalized(features_NF: np.ndarray) -> np.ndarray:
    """Returns rows of length 1, float32; zeros, and what is not finite, as zeros."""
    finite_NF = np.where(np.isfinite(features_NF).all(axis=1, keepdims=True), features_NF, 0.0)
    length_N1 = np.linalg.norm(finite_NF, axis=1, keepdims=True)
    return (finite_NF / np.where(length_N1 > 0, length_N1, 1)).astype(np.float32)


def _sources(config: ContentConfig, items: pa.Table, encode: Callable) -> Iterator[_Source]:
    if config.text_columns:
        from recsys.data.encoders import TextEncoder

        directory = locate(config.text_encoder, "text").absolute()
        make = partial(TextEncoder, directory, config.max_tokens)
        texts = texts_of(items, config.text_columns)
        # The hub's name holds on any machine; a directory, wherever it is that training starts.
        named = str(directory) if Path(config.text_encoder).is_dir() else config.text_encoder
        yield _Source("text", config.text_columns, named, texts, partial(encode, make))
    if config.image_column is not None:
        from recsys.data.encoders import ImageEncoder

        make = partial(ImageEncoder, locate(config.image_encoder, "image").absolute())
        images = _images(items, config.image_column)
        column = (config.image_column,)
        yield _Source("image", column, config.image_encoder, images, partial(encode, make))
    if config.embedding_column is not None:
        vectors = _vectors(items, config.embedding_column)
        yield _Source("embedding", (config.embedding_column,), None, vectors, _as_features)


def texts_of(items: pa.Table, columns: Sequence[str]) -> list[str | None]:
    """Returns the text of every item: its columns, joined; None where there is nothing."""
    rows = zip(*(items[column].to_pylist() for column in columns), strict=True)
    texts = (". ".join(filter(None, map(_as_text, row))) for row in rows)
    return [text or None for text in texts]


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    return "" if value is None else str(value).strip()


def _images(items: pa.Table, column: str) -> list[bytes | str | None]:
    kind = items.schema.field(column).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return items[column].to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [_absolute(path) if path else None for path in items[column].to_pylist()]
    raise ValueError(f"{column!r} has values of type {kind}; give images as bytes, paths or URIs")


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def _vectors(items: pa.Table, column: str) -> list[list[float] | None]:
    kind = items.schema.field(column).type
    is_list = isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)
    if not (is_list and (is_floating(kind.value_type) or is_integer(kind.value_type))):
        raise ValueError(
            f"{column!r} has values of type {kind}; give embeddings as lists of floats"
        )
    return items[column].to_pylist()


def _as_features(vectors: list[list[float]]) -> np.ndarray:
    widths, counts = np.unique([len(vector) for vector in vectors], return_counts=True)
    if len(widths) > 1:
        found = ", ".join(f"{n:,} of {width}" for width, n in zip(widths, counts, strict=True))
        raise ValueError(f"embeddings have different lengths ({found}); give all of one length")
    return normalized(np.array(vectors, np.float64))
