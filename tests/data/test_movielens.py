"""The archive, from a small copy in its layout."""

import io
import urllib.error
import zipfile

import pyarrow.parquet as pq
import pytest

from recsys.data import movielens
from recsys.data.movielens import convert

RATINGS = "1::20::5::100\n1::10::3::90\n2::10::4::50\n"
FILMS = "10::Am\xe9lie (2001)::Comedy|Romance\n20::Heat (1995)::Action\n"


def _archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", RATINGS)
        archive.writestr("ml-1m/movies.dat", FILMS.encode("latin-1"))
    return path


def _check(log, items):
    assert pq.read_table(log).to_pydict() == {
        "user_id": [1, 1, 2],
        "item_id": [20, 10, 10],
        "timestamp": [100, 90, 50],
    }
    assert pq.read_table(items)["title"].to_pylist() == ["Amélie (2001)", "Heat (1995)"]


def test_a_zip_and_its_folder_say_the_same(tmp_path):
    path = _archive(tmp_path / "copy.zip")
    _check(*convert(tmp_path, str(path)))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    _check(*convert(tmp_path, str(tmp_path / "ml-1m")))


def test_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "")
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    for name in ("other.zip", "broken.zip", ""):
        with pytest.raises(ValueError, match="is not the MovieLens-1M archive"):
            convert(tmp_path, str(tmp_path / name))
    with pytest.raises(ValueError, match="does not exist"):
        convert(tmp_path, str(tmp_path / "gone.zip"))


def test_what_is_fetched_must_have_the_published_checksum(tmp_path, monkeypatch):
    content = _archive(tmp_path / "copy.zip").read_bytes()
    monkeypatch.setattr(movielens.urllib.request, "urlopen", lambda *a, **k: io.BytesIO(content))
    with pytest.raises(ValueError, match="checksum differs"):
        convert(tmp_path, None)
    monkeypatch.setattr(movielens, "MD5", movielens.hashlib.md5(content).hexdigest())
    _check(*convert(tmp_path, None))


def test_no_network_is_said(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(movielens.urllib.request, "urlopen", fail)
    with pytest.raises(ValueError, match=r"cannot be fetched .* with --log"):
        convert(tmp_path, None)
