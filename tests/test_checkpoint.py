import numpy as np
import pytest

from recsys.checkpoint import Origin, load_weights, save_model, verify_model
from recsys.files import read_json, write_json
from recsys.models import TransformerConfig


@pytest.fixture
def directory(tmp_path):
    items = tmp_path / "items.parquet"
    items.write_bytes(b"not read here")
    weights = {"a": np.arange(3, dtype=np.float32)}
    directory = tmp_path / "model"
    save_model(
        directory,
        config=TransformerConfig(),
        weights=weights,
        items=items,
        origin=Origin(role="student"),
    )
    return directory


def test_what_was_saved_is_loaded(directory):
    config = verify_model(directory)
    assert config["role"] == "student"
    np.testing.assert_array_equal(load_weights(directory)["a"], [0, 1, 2])


def test_flipped_byte_is_refused(directory):
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        verify_model(directory)


def test_missing_file_is_refused(directory):
    (directory / "items.parquet").unlink()
    with pytest.raises(ValueError, match=r"items\.parquet is missing"):
        verify_model(directory)


def test_newer_schema_is_refused(directory):
    config = read_json(directory / "config.json")
    write_json(directory / "config.json", {**config, "schema_version": 99})
    with pytest.raises(ValueError, match="schema version 99"):
        verify_model(directory)


@pytest.mark.parametrize("name", ["role", "files"])
def test_what_does_not_describe_a_model_is_refused(directory, name):
    config = read_json(directory / "config.json")
    del config[name]
    write_json(directory / "config.json", config)
    with pytest.raises(ValueError, match="does not describe a model"):
        verify_model(directory)
    (directory / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        verify_model(directory)


def test_other_directory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a model directory"):
        verify_model(tmp_path)
