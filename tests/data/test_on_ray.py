"""Preparing logs with Ray Data, good ones and bad ones."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data import on_ray
from recsys.data.schema import PrepareConfig
from recsys.data.sequences import Dataset
from recsys.data.split import GlobalTimeCut
from recsys.data.synthetic import SyntheticConfig

pytestmark = pytest.mark.usefixtures("ray_started")
HEAD = "user_id,item_id,timestamp\n"
BAD = HEAD + "u,a,1\n,a,2\nu,,3\nu,b,soon\nu,nowhere,5\nv,b,6\nv,\n,b,8\n"
MOVIELENS = Path(__file__).parents[2].parent / "shared/data/ml-1m"


def _prepare(directory: Path, log: Path | str, **settings):
    directory.mkdir(parents=True, exist_ok=True)
    return on_ray.prepare(PrepareConfig(source="log", log=str(log), **settings), directory)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _refused(tmp_path: Path, log: Path, **settings) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        _prepare(tmp_path / "dataset", log, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_log_with_bad_rows_is_refused_with_counts_and_examples(tmp_path):
    log, items = _write(tmp_path / "log.csv", BAD), _write(tmp_path / "i.csv", "item_id\na\nb\n")
    message = _refused(tmp_path, log, items=str(items))
    assert message.startswith(f"6 bad rows in {log}: 2 x user id is missing, ")
    for part in (
        "1 x item id is missing",
        "1 x time is missing or cannot be parsed",
        "1 x item is not in the item table",
        "1 x row cannot be read",
        "user_id='', item_id='a', timestamp='2'",
        "--on-bad-rows set-aside",
    ):
        assert part in message


def test_bad_rows_are_set_aside_and_counted(tmp_path, capsys):
    log, items = _write(tmp_path / "log.csv", BAD), _write(tmp_path / "i.csv", "item_id\na\nb\n")
    settings = {"items": str(items), "on_bad_rows": "set-aside"}
    manifest = _prepare(tmp_path / "dataset", log, **settings)
    assert "6 bad rows set aside" in capsys.readouterr().out
    assert (manifest["num_interactions"], manifest["num_rejected"]) == (2, 6)
    assert manifest["rejected"]["user id is missing"] == 2
    rejected = pq.read_table(tmp_path / "dataset/rejected.parquet")
    assert rejected["problem"].to_pylist()[1] == "item id is missing"
    assert rejected["file"].to_pylist() == [str(log)] * 6
    assert not (tmp_path / "dataset/scratch").exists()


def test_only_bad_rows(tmp_path):
    log = _write(tmp_path / "log.csv", HEAD + ",a,1\n")
    assert "no interaction is left" in _refused(tmp_path, log, on_bad_rows="set-aside")


def test_truncated_parquet(tmp_path):
    pq.write_table(pa.table({"user_id": np.arange(9999)}), tmp_path / "whole.parquet")
    log = tmp_path / "log.parquet"
    log.write_bytes((tmp_path / "whole.parquet").read_bytes()[:9000])
    assert f"{log} cannot be read" in _refused(tmp_path, log)


def test_parquet_damaged_in_the_middle(tmp_path):
    log = tmp_path / "log.parquet"
    columns = {name: np.arange(9999) for name in ("user_id", "item_id", "timestamp")}
    pq.write_table(pa.table(columns), log, compression="zstd", use_dictionary=False)
    content = bytearray(log.read_bytes())
    content[4:4000] = bytes(3996)
    log.write_bytes(content)
    assert f"{log} cannot be read" in _refused(tmp_path, log)


def test_empty_files(tmp_path):
    log = _write(tmp_path / "log.csv", "")
    assert _refused(tmp_path, log) == f"{log} is empty"
    assert "no interaction is left" in _refused(tmp_path, _write(log, HEAD))


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        ("u,a,1\nu,b,2\nu,c,3\n", (1, 3, 3)),  # one user
        ("u,a,1\nv,a,2\nw,a,3\n", (3, 1, 3)),  # one item
        ("u,a,1\n", (1, 1, 1)),
    ],
)
def test_one_user_one_item_one_row(tmp_path, rows, counts):
    manifest = _prepare(tmp_path / "dataset", _write(tmp_path / "log.csv", HEAD + rows))
    names = ("num_users", "num_items", "num_interactions")
    assert tuple(manifest[name] for name in names) == counts
    assert Dataset.open(tmp_path / "dataset").num_users == counts[0]


def _random_log(seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            "who": generator.integers(0, 40, 900),
            "what": generator.integers(0, 25, 900),
            "when": generator.integers(0, 50, 900) / 4,
        }
    )


def _hashes(directory: Path) -> dict[str, str]:
    files = sorted(directory.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_dataset_is_the_same_however_the_log_is_cut(tmp_path, monkeypatch):
    log, folder = _random_log(), tmp_path / "folder"
    pq.write_table(log, tmp_path / "log.parquet")
    folder.mkdir()
    for number in range(3):
        pq.write_table(log.slice(300 * number, 300), folder / f"{number}.parquet")
    names = {"user_column": "who", "item_column": "what", "time_column": "when"}
    settings = {**names, "k_core": 3, "split": GlobalTimeCut()}
    manifest = _prepare(tmp_path / "one", tmp_path / "log.parquet", **settings)
    assert manifest["num_duplicates"] > 0
    _prepare(tmp_path / "several", folder, **settings)
    monkeypatch.setattr(on_ray, "ROWS_PER_PARTITION", 300)
    _prepare(tmp_path / "parts", folder, **settings)
    assert _hashes(tmp_path / "one") == _hashes(tmp_path / "several") == _hashes(tmp_path / "parts")


def test_several_partitions_and_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(on_ray, "_num_partitions", lambda files: 4)
    rows = "".join(f"u{n % 7},i{n % 5},{n}\n" for n in range(70))
    manifest = _prepare(Path("dataset"), _write(Path("log.csv"), HEAD + rows))
    assert (manifest["num_users"], manifest["num_interactions"]) == (7, 70)
    dataset = Dataset.open(tmp_path / "dataset")
    assert dataset.user_ids.to_pylist() == [f"u{n}" for n in range(7)]
    assert all((np.diff(dataset.timestamps(user)) == 7).all() for user in range(7))


def test_built_in_log(tmp_path, capfd):
    small = SyntheticConfig(num_users=50, num_items=300, num_families=20, mean_length=10)
    manifest = on_ray.prepare(PrepareConfig(synthetic=small), tmp_path)
    assert manifest["num_users"] == 50
    assert manifest["best_possible"]["test"]["ndcg@10"] > 0
    assert "topic" in pq.read_table(tmp_path / "items.parquet").column_names
    assert capfd.readouterr().err == ""


def test_movielens_1m_has_its_known_size(tmp_path):
    if not MOVIELENS.exists():
        pytest.skip(f"no MovieLens-1M in {MOVIELENS}")
    items = str(MOVIELENS / "items.parquet")
    manifest = _prepare(tmp_path, MOVIELENS / "interactions.parquet", items=items)
    names = ("num_users", "num_items", "num_interactions", "num_rejected")
    assert tuple(manifest[name] for name in names) == (6040, 3416, 999_611, 0)
