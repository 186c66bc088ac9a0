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
from recsys.train.loop import FileCheckpoints
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


@pytest.fixture
def recordings(monkeypatch):
    """The recordings of steps that are made."""
    made, graph = [], torch.cuda.CUDAGraph

    def recording():
        made.append(graph())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", recording)
    return made


@pytest.mark.parametrize(
    "model", [TRANSFORMER, CODES, HSTU, GRU], ids=["transformer", "codes", "hstu", "gru"]
)
def test_every_model_learns_the_same(dataset_directory, tmp_path, recordings, model):
    task = Task(dataset=dataset_directory, model=model, train=CPU)
    on_cpu, on_gpu = both(task, tmp_path)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3)
    assert len(recordings) == 1


def test_dropout_has_other_masks_in_every_step_that_is_repeated(dataset_directory, tmp_path):
    """With the same masks in all, a step would have the loss of the one before, nearly."""
    model = replace(TRANSFORMER, dropout=0.5)
    train = replace(CUDA, learning_rate=1e-12, epochs=6, ema=None)
    found = losses(fit(Task(dataset=dataset_directory, model=model, train=train), tmp_path))
    again = replace(train, seed=1)
    others = losses(
        fit(Task(dataset=dataset_directory, model=model, train=again), tmp_path / "cuda")
    )
    assert len({round(loss, 6) for loss in found}) == len(found)
    assert found != others


def test_a_run_that_stopped_goes_on_as_it_would_have(dataset_directory, tmp_path):
    model = replace(TRANSFORMER, dropout=0.1)
    task = Task(dataset=dataset_directory, model=model, train=CUDA)
    expected = losses(fit(task, tmp_path / "cpu"))
    with pytest.raises(KeyboardInterrupt):
        fit(task, Stops(tmp_path / "cuda", after=2))
    assert losses(fit(task, tmp_path / "cuda")) == pytest.approx(expected, rel=1e-4)


class Stops(FileCheckpoints):
    """Stops the run after some checkpoints."""

    def __init__(self, directory, after):
        super().__init__(directory)
        self.left = after

    def save(self, state, metrics):
        super().save(state, metrics)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_codes_move_and_weights_are_rounded_the_same(dataset_directory, dataset, tmp_path):
    initial = tmp_path / "initial"
    torch.manual_seed(0)
    model = build(CODES, dataset.num_items_with_padding)
    save(model, initial, items=dataset.path / ITEMS, origin=Origin(role="student"))
    task = Task(dataset=dataset_directory, model=CODES, train=CPU, initial=initial, weight_bits=4)
    on_cpu, on_gpu = both(task, tmp_path)
    assert on_gpu == pytest.approx(on_cpu, rel=2e-2)


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
    for expected, found in zip(
        *(each.look_up(rows_N).answers() for each in (on_cpu, on_gpu)), strict=True
    ):
        finite = expected.isfinite()
        assert torch.equal(finite, found.isfinite())
        assert torch.allclose(found[finite].float(), expected[finite].float(), atol=2e-3)
    kl, union, hints = (
        DistillConfig(soft="kl"),
        DistillConfig(soft="union"),
        DistillConfig(hint_weight=1.0),
    )
    stored, live = tmp_path / "targets-cpu", LiveTeacher(teacher, keep)
    for source, config in ((stored, kl), (stored, union), (stored, hints), (live, hints)):
        listens = Distillation(source, config, dataset_directory)
        task = Task(dataset=dataset_directory, model=TRANSFORMER, train=CPU, objective=listens)
        task = replace(task, model=replace(TRANSFORMER, width=24))
        found = losses(fit(replace(task, train=CUDA), tmp_path / "cuda"))
        expected = losses(fit(task, tmp_path / "cpu"))
        assert found == pytest.approx(expected, rel=1e-2)
        for name in ("cpu", "cuda"):
            (tmp_path / name / "checkpoint.pt").unlink()
