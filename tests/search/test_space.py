import itertools
from dataclasses import replace

import pytest

from recsys.compress import CodebookItems, FactorizeItems, Quantize
from recsys.config import from_json, to_json
from recsys.distill.objective import DistillConfig
from recsys.models import GRUConfig, TransformerConfig, build
from recsys.search.space import Point, SearchConfig, choices, point_from


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_trials": -1}, "num_trials must be at least 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"widths": ()}, "nothing to choose a width from"),
    ],
)
def test_a_search_that_cannot_be_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**setting)


def test_every_sample_is_a_model_that_can_be_built():
    config = SearchConfig()
    shapes = {key: choices(config)[key] for key in ("width", "num_layers", "expansion")}
    rest = {"soft_weight": 0.5, "dropout": 0.1, "item_rank_share": 0.0, "bits": 8}
    rest |= {"item_codes": 8}
    for values in itertools.product(*shapes.values()):
        sample = dict(zip(shapes, values, strict=True)) | rest
        for student in (TransformerConfig(max_length=20), GRUConfig(max_length=20)):
            point = point_from(sample, student, DistillConfig(), config)
            assert type(point.model) is type(student)
            assert build(point.model, 10).config.max_length == 20
            if isinstance(point.model, TransformerConfig):  # heads as wide as the student's
                heads = (point.model.num_heads, point.model.head_width)
                assert heads == (max(1, sample["width"] // 32), 32)
            assert replace(point.model, item_codes=point.recipe[0].codes)


def test_recipes_and_names_follow_the_sample():
    config = SearchConfig(recover_epochs=2)
    sample = {
        "width": 16,
        "num_layers": 1,
        "expansion": 2,
        "soft_weight": 0.7,
        "dropout": 0.2,
        "item_rank_share": 0.5,
        "item_codes": 0,
        "bits": 8,
    }
    point = point_from(sample, TransformerConfig(), DistillConfig(), config)
    assert point.recipe == (FactorizeItems(rank=8, recover_epochs=2), Quantize())
    assert (point.model.dropout, point.distill.soft_weight) == (0.2, 0.7)
    other = point_from({**sample, "bits": 32}, TransformerConfig(), DistillConfig(), config)
    assert point.name != other.name
    assert other.recipe == point.recipe[:1]
    few = {**sample, "bits": 4, "item_rank_share": 0.0}
    recovered = (Quantize(bits=4, recover_epochs=2),)
    assert point_from(few, TransformerConfig(), DistillConfig(), config).recipe == recovered
    assert point_from(few, GRUConfig(), DistillConfig(), config).recipe == (Quantize(bits=4),)
    coded = point_from(
        {**sample, "item_codes": 8}, TransformerConfig(item_codes=2), DistillConfig(), config
    )
    assert coded.recipe == (CodebookItems(codes=8, recover_epochs=2), Quantize())
    assert coded.model == point.model
    assert from_json(Point, to_json(point)) == point
