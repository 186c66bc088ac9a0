"""The public MovieLens-1M archive, fetched and converted, or read from a local copy."""

import hashlib
import io
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MD5 = "c4d9eecfca2ab87c1945afe126590906"  # as GroupLens publishes it
FOLDER = "ml-1m"
FILES = RATINGS, FILMS = ("ratings.dat", "movies.dat")
TIMEOUT_SECONDS = 60


def convert(directory: Path, copy: str | None) -> tuple[Path, Path]:
    """Writes the archive's ratings and films as Parquet and returns both files.

    Args:
        copy: ml-1m.zip, or the folder that it unpacks to; none to fetch the archive.

    Raises:
        ValueError: the archive cannot be fetched, or is not the published one.
    """
    ratings = _frame(copy, RATINGS, ["user_id", "item_id", "rating", "timestamp"], directory)
    films = _frame(copy, FILMS, ["item_id", "title", "genres"], directory)
    log, items = directory / "ratings.parquet", directory / "films.parquet"
    pq.write_table(pa.Table.from_pandas(ratings.drop(columns="rating")), log)
    pq.write_table(pa.Table.from_pandas(films), items)
    return log, items


def _frame(copy: str | None, name: str, columns: list[str], directory: Path) -> pd.DataFrame:
    text = _read(copy, name, directory)
    return pd.read_csv(
        io.StringIO(text.decode("latin-1")), sep="::", engine="python", names=columns
    )


def _read(copy: str | None, name: str, directory: Path) -> bytes:
    if copy is not None and Path(copy).is_dir():
        return _read_unpacked(Path(copy) / name)
    archive = Path(copy) if copy is not None else _fetch(directory / "ml-1m.zip")
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.read(f"{FOLDER}/{name}")
    except FileNotFoundError:
        raise ValueError(f"{archive} does not exist") from None
    except (zipfile.BadZipFile, KeyError):
        raise ValueError(f"{archive} is not the MovieLens-1M archive") from None


def _read_unpacked(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not the MovieLens-1M archive: no {path.name}") from None


def _fetch(path: Path) -> Path:
    if path.exists():
        return path
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise ValueError(
            f"{URL} cannot be fetched ({error}); give ml-1m.zip, or its folder, with --log"
        ) from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5:
        raise ValueError(f"{URL} is not the archive that was published: its checksum differs")
    path.write_bytes(content)
    return path
