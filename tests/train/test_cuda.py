"""A GPU computes what the processor does; nothing here runs where there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.checkpoint import ITEMS, Origin
from recsys.distill.answers import LiveTeacher, TargetsConfig
from recsys.distill.objective import Distillation, DistillConfig
from recsys.distill.targets import Targets, write_targets
from recsys.files import run_stage
from recsys.models import GRUConfig, HSTUConfig, TransformerConfig, build, load_model, save
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit
from recsys.train.objective import LossConfig, objective

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

TRANSFORMER = TransformerConfig(
    width=16,
    num_layers=2,
    num_heads=2,
    head_width=8,
    feed_forward_width=32,
    max_length=8,
    dropout=0.0,
)
CODES = replace(TRANSFORMER, item_codes=4)
HSTU = HSTUConfig(width=16, num_layers=2, num_heads=2, head_width=8, max_length=8, dropout=0.0)
GRU = GRUConfig(width=16, hidden_width=16, max_length=8, dropout=0.0)
CPU = TrainConfig(
    epochs=3,
    batch_rows=4,
    learning_rate=1e-2,
    ema=0.9,
    bfloat16=False,
    matmul_precision="highest",
)
CUDA = replace(CPU, device="cuda")


def losses(fitted) -> list[float]:
    return [entry["loss"] for entry in fitted.history]


def both(task: Task, directory) -> tuple[list[float], list[float]]:
    """Returns the losses of a task on the processor and on the GPU."""
    return tuple(
        losses(fit(replace(task, train=train), directory / train.device)) for train in (CPU, CUDA)
    )


@pytest.fixture(autouse=True)
def _directories(tmp_path):
    for name in ("cpu", "cuda"):
        (tmp_path / name).mkdir()


@pytest.mark.parametrize("model", [TRANSFORMER, CODES, HSTU, GRU], ids=lambda m: type(m).__name__)
def test_every_model_learns_the_same(dataset_directory, tmp_path, model):
    task = Task(dataset=dataset_directory, model=model, train=CPU)
    on_cpu, on_gpu = both(task, tmp_path)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("kind", ["sampled-softmax", "gbce"])
def test_every_loss_is_the_same(dataset_directory, tmp_path, kind):
    loss = objective(LossConfig(kind=kind, num_negatives=16), dataset_directory)
    task = Task(dataset=dataset_directory, model=TRANSFORMER, train=CPU, objective=loss)
    on_cpu, on_gpu = both(task, tmp_path)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def test_compiled_and_in_bfloat16_it_learns_about_the_same(dataset_directory, tmp_path):
    train = replace(CUDA, compile=True, bfloat16=None)
    task = Task(dataset=dataset_directory, model=TRANSFORMER, train=train)
    expected = losses(fit(replace(task, train=CPU), tmp_path / "cpu"))
    assert losses(fit(task, tmp_path / "cuda")) == pytest.approx(expected, rel=2e-2)


def test_a_teacher_answers_the_same_stored_and_live(dataset_directory, dataset, tmp_path):
    teacher = tmp_path / "teacher"
    torch.manual_seed(0)
    model = build(replace(TRANSFORMER, width=24), dataset.num_items_with_padding)
    teacher.mkdir()
    save(model, teacher, items=dataset.path / ITEMS, origin=Origin(role="teacher"))
    keep = TargetsConfig(top_k=8, num_sampled=4, vectors=True)
    for name in ("cpu", "cuda"):
        run_stage(
            tmp_path / f"targets-{name}",
            name="targets",
            config=keep,
            inputs={},
            build=lambda path, name=name: write_targets(
                load_model(teacher).to(torch.device(name)), dataset, path, keep
            ),
        )
    rows_N = np.arange(len(Targets(tmp_path / "targets-cpu")))
    on_cpu, on_gpu = (Targets(tmp_path / f"targets-{name}") for name in ("cpu", "cuda"))
    for expected, found in zip(on_cpu.look_up(rows_N), on_gpu.look_up(rows_N), strict=True):
        finite = expected.isfinite()
        assert torch.equal(finite, found.isfinite())
        assert torch.allclose(found[finite].float(), expected[finite].float(), atol=2e-3)
    for source in (tmp_path / "targets-cpu", LiveTeacher(teacher, keep)):
        listens = Distillation(source, DistillConfig(hint_weight=1.0), dataset_directory)
        task = Task(dataset=dataset_directory, model=TRANSFORMER, train=CPU, objective=listens)
        task = replace(task, model=replace(TRANSFORMER, width=24))
        found = losses(fit(replace(task, train=CUDA), tmp_path / "cuda"))
        expected = losses(fit(task, tmp_path / "cpu"))
        assert found == pytest.approx(expected, rel=1e-2)
        for name in ("cpu", "cuda"):
            (tmp_path / name / "checkpoint.pt").unlink()
