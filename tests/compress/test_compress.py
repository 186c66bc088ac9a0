"""Contract suite over the union of compression steps, and recipes of several."""

import dataclasses
import typing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.checkpoint import Origin
from recsys.compress import (
    CodebookItems,
    FactorizeItems,
    FactorizeLinears,
    PruneFeedForward,
    PruneHeads,
    PruneLayers,
    PruneLength,
    PruneWidth,
    Quantize,
    Step,
    apply,
    compress,
)
from recsys.compress.export import export_onnx
from recsys.config import from_json, to_json
from recsys.models import build, load_model, save
from recsys.models.gru import GRUConfig
from recsys.models.interface import torch_scorer
from recsys.models.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(
    width=32, num_layers=3, num_heads=4, head_width=8, feed_forward_width=64, max_length=20
)
NUM_ITEMS = 300
SMALLER: dict[type, Step] = {
    PruneLayers: PruneLayers(keep=2),
    PruneHeads: PruneHeads(keep=3),
    PruneFeedForward: PruneFeedForward(keep=48),
    PruneWidth: PruneWidth(keep=28),
    PruneLength: PruneLength(keep=10),
    FactorizeLinears: FactorizeLinears(rank=12),
    FactorizeItems: FactorizeItems(rank=24),
    CodebookItems: CodebookItems(codes=16),
    Quantize: Quantize(),
}
WHOLE = (
    PruneLayers(keep=3),
    PruneHeads(keep=4),
    PruneFeedForward(keep=64),
    PruneWidth(keep=32),
    PruneLength(keep=20),
    FactorizeLinears(rank=32),
    FactorizeItems(rank=32),
)
TOO_MUCH = (
    PruneLayers(keep=4),
    PruneHeads(keep=5),
    PruneFeedForward(keep=65),
    PruneWidth(keep=33),
    PruneLength(keep=21),
    FactorizeLinears(rank=33),
    FactorizeItems(rank=33),
    CodebookItems(codes=33),
)


@pytest.fixture(params=[None, 16], ids=["dense", "factored"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, linear_rank=request.param)
    model = build(config, NUM_ITEMS + 1)
    assert isinstance(model, Transformer)
    with torch.no_grad():
        for parameter in model.item_embedding.parameters():
            parameter.mul_(50)
    model.eval()
    return model


@pytest.fixture
def histories() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, NUM_ITEMS + 1, length, dtype=np.int32) for length in range(40)]


def num_parameters(model) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_every_step_is_covered():
    assert set(SMALLER) == set(typing.get_args(Step))


@pytest.mark.parametrize("step", SMALLER.values(), ids=lambda step: type(step).__name__)
def test_step_survives_json(step):
    assert from_json(Step, to_json(step)) == step


@pytest.mark.parametrize("step", SMALLER.values(), ids=lambda step: type(step).__name__)
def test_step_makes_a_smaller_file_that_answers_like_the_model(
    step, model, histories, tmp_path: Path
):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    smaller, precision = compress(model, (step,), histories=histories)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    (tmp_path / "before").mkdir()
    export_onnx(model, tmp_path / "before", histories=histories)
    ids = [None, *map(str, range(NUM_ITEMS))]
    pq.write_table(pa.table({"item_id": ids}), tmp_path / "items.parquet")
    save(
        smaller,
        tmp_path / "after",
        items=tmp_path / "items.parquet",
        origin=Origin(role="compressed"),
    )
    loaded = load_model(tmp_path / "after")
    assert loaded.config == smaller.config
    parity = export_onnx(loaded, tmp_path / "after", histories=histories, precision=precision)
    assert parity["top10_overlap"] > (0.999 if precision == "float32" else 0.9)
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("before", "after")]
    assert sizes[1] < sizes[0]
    if precision == "float32":
        assert num_parameters(smaller) <= num_parameters(model)


@pytest.mark.parametrize("step", SMALLER.values(), ids=lambda step: type(step).__name__)
def test_step_stays_near_the_model(step, model, histories):
    expected = torch_scorer(model)(histories)
    actual = torch_scorer(apply(step, model, histories))(histories)
    correlation = np.corrcoef(expected[:, 1:].ravel(), actual[:, 1:].ravel())[0, 1]
    assert correlation > 0.6


@pytest.mark.parametrize("step", WHOLE, ids=str)
def test_keeping_everything_changes_nothing(step, model, histories):
    if isinstance(step, FactorizeLinears) and model.config.linear_rank:
        step = FactorizeLinears(rank=model.config.linear_rank)
    expected = torch_scorer(model)(histories)
    actual = torch_scorer(apply(step, model, histories))(histories)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("step", TOO_MUCH, ids=str)
def test_asking_for_more_than_there_is_is_refused(step, model, histories):
    with pytest.raises(ValueError, match=rf"{type(step).__name__}\.\w+ is \d+, but the model has"):
        apply(step, model, histories)


@pytest.mark.parametrize(
    "config", [CONFIG, GRUConfig(width=32, hidden_width=16, max_length=20)], ids=["dense", "gru"]
)
def test_a_shorter_view_is_that_of_the_latest_items(config, histories):
    torch.manual_seed(0)
    model = build(config, NUM_ITEMS + 1).eval()
    shorter = apply(PruneLength(keep=10), model, histories)
    expected = torch_scorer(model)([history[-10:] for history in histories])
    np.testing.assert_array_equal(torch_scorer(shorter)(histories), expected)


def test_recipe_composes_and_recovers_where_asked(model, histories):
    recovered = []

    def recover(smaller, step, _):
        recovered.append((smaller.config.num_heads, step))
        return smaller

    recipe = (
        PruneLayers(keep=1),
        PruneHeads(keep=2, recover_epochs=3),
        PruneFeedForward(keep=16),
        FactorizeLinears(rank=8),
        FactorizeItems(rank=8),
        Quantize(),
    )
    smaller, precision = compress(model, recipe, histories=histories, recover=recover)
    assert recovered == [(2, recipe[1])]
    assert precision == "int8"
    assert smaller.config == dataclasses.replace(
        CONFIG, num_layers=1, num_heads=2, feed_forward_width=16, linear_rank=8, item_rank=8
    )


def test_what_cannot_be_is_refused_before_training(model, histories):
    recipe = (FactorizeItems(rank=8, recover_epochs=3), PruneHeads(keep=99))
    with pytest.raises(ValueError, match=r"the model has"):
        compress(model, recipe, histories=histories, recover=pytest.fail)


def test_a_gru_is_not_trained_before_its_rounding_is_refused(histories):
    gru = build(GRUConfig(width=8, num_layers=1, max_length=12), NUM_ITEMS + 1)
    recipe = (CodebookItems(codes=2, recover_epochs=3), Quantize(bits=4, recover_epochs=3))
    with pytest.raises(ValueError, match="a GRU cannot be trained with rounded"):
        compress(gru, recipe, histories=histories, recover=pytest.fail)


def test_recovery_without_a_trainer_is_refused(model, histories):
    with pytest.raises(ValueError, match="PruneHeads asks for recovery"):
        compress(model, (PruneHeads(keep=1, recover_epochs=1),), histories=histories)


def test_calibration_without_items_is_refused(model):
    with pytest.raises(ValueError, match="at least one history"):
        apply(PruneLayers(keep=1), model, [np.zeros(0, dtype=np.int32)])
