"""Students that start as their teacher."""

import dataclasses

import numpy as np
import pytest
import torch

from recsys.checkpoint import Origin
from recsys.compress.shrink import shrink, write_initial
from recsys.models import EnsembleConfig, GRUConfig, TransformerConfig, build, load_model, save
from recsys.models.interface import torch_scorer

CONFIG = TransformerConfig(
    width=32, num_layers=3, num_heads=4, head_width=8, feed_forward_width=64, max_length=20
)
NUM_ITEMS = 300


@pytest.fixture
def histories() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, NUM_ITEMS + 1, length, dtype=np.int32) for length in range(40)]


def test_a_student_of_its_teachers_shape_starts_with_the_teachers_scores(histories):
    torch.manual_seed(0)
    teacher = build(CONFIG, NUM_ITEMS + 1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms that scale and shift
    student = shrink(teacher, dataclasses.replace(CONFIG, dropout=0.0), histories=histories)
    assert student.config.dropout == 0
    asked = histories[1:]
    np.testing.assert_array_equal(torch_scorer(student)(asked), torch_scorer(teacher)(asked))


@pytest.mark.parametrize(("weights", "cut"), [((), 0), ((0.2, 0.8), 1)])
def test_of_an_ensemble_the_member_of_most_weight_is_cut(weights, cut, histories):
    config = EnsembleConfig(members=(CONFIG, CONFIG), weights=weights)
    teacher = build(config, NUM_ITEMS + 1)
    student = shrink(teacher, CONFIG, histories=histories)
    scores_BV = torch_scorer(teacher.members[cut])(histories[1:])
    np.testing.assert_array_equal(torch_scorer(student)(histories[1:]), scores_BV)


def test_a_student_has_the_shape_that_is_asked_for(histories):
    teacher = build(CONFIG, NUM_ITEMS + 1)
    shape = {"width": 20, "num_layers": 2, "num_heads": 1, "feed_forward_width": 24}
    config = dataclasses.replace(CONFIG, **shape, item_rank=10, linear_rank=6)
    assert shrink(teacher, config, histories=histories).config == config


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 33}, "the student's width is 33, the teacher's 32"),
        ({"num_layers": 4}, "the student's num_layers is 4, the teacher's 3"),
        ({"head_width": 4}, "give the student --model.head-width 8"),
        ({"content": ("text",)}, "a student with content"),
        ({"width": 8, "item_rank": 16}, "has 8 ranks"),
    ],
)
def test_a_student_that_is_no_part_of_its_teacher_is_told_why(changes, reason, histories):
    teacher, config = build(CONFIG, NUM_ITEMS + 1), dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=reason):
        shrink(teacher, config, histories=histories)
    with pytest.raises(ValueError, match="only a transformer"):
        shrink(teacher, GRUConfig(width=8), histories=histories)
    factored = build(dataclasses.replace(CONFIG, item_rank=4), NUM_ITEMS + 1)
    with pytest.raises(ValueError, match="in factors or codes"):
        shrink(factored, CONFIG, histories=histories)


def test_a_student_starts_as_its_teacher_where_it_can(dataset, dataset_directory, tmp_path):
    teacher = build(CONFIG, dataset.num_items_with_padding)
    items = dataset_directory / "items.parquet"
    save(teacher, tmp_path / "teacher", items=items, origin=Origin(role="teacher"))

    def initial(start, config):
        return write_initial(start, tmp_path / "teacher", config, dataset, tmp_path)

    assert initial("fresh", CONFIG) == (None, "")
    directory, why_not = initial("auto", GRUConfig(width=8))
    assert directory is None
    assert why_not.startswith("only a transformer")
    asked = [np.array([1, 2, 3])]
    for start in ("auto", "teacher"):
        directory, why_not = initial(start, CONFIG)
        scores = torch_scorer(load_model(directory))(asked)
        np.testing.assert_array_equal(scores, torch_scorer(teacher.eval())(asked))
        assert not why_not
    with pytest.raises(ValueError, match="only a transformer"):
        initial("teacher", GRUConfig(width=8))
    directory, why_not = initial("auto", dataclasses.replace(CONFIG, item_codes=4))
    assert directory is None
    assert "rows" in why_not
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        initial("auto", CONFIG)
