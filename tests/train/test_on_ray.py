"""Data-parallel training: the same curve as one worker, and the same weights after a kill."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recsys.models import TransformerConfig
from recsys.train.fit import Task, fit
from recsys.train.loop import TrainConfig
from recsys.train.objective import next_item

MODEL = TransformerConfig(
    width=16,
    num_layers=1,
    num_heads=2,
    head_width=8,
    feed_forward_width=32,
    max_length=8,
    dropout=0.0,
)
CONFIG = TrainConfig(
    epochs=3,
    batch_rows=4,
    learning_rate=1e-2,
    checkpoint_every=3,
    # Sums in another order round otherwise, in bfloat16 too far.
    bfloat16=False,
    matmul_precision="highest",
)


class DiesOnce:
    """An objective whose worker kills itself, without a word, at one step of its first life."""

    def __init__(self, marker, step):
        self.marker, self.step, self.calls = marker, step, 0

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == self.step and not self.marker.exists():
            self.marker.write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)
        return next_item(model, batch)


def weights(fitted):
    return fitted.model.state_dict()


@pytest.mark.usefixtures("ray_started")
def test_two_workers_follow_the_curve_of_one_and_a_killed_worker_changes_nothing(
    dataset_directory, tmp_path, monkeypatch
):
    from recsys.train.on_ray import fit_on_ray

    monkeypatch.chdir(dataset_directory.parent)
    task = Task(dataset=Path(dataset_directory.name), model=MODEL, train=CONFIG)
    alone = fit(task, tmp_path)
    pair = fit_on_ray(task, tmp_path / "pair", 2)
    killed = replace(task, objective=DiesOnce(tmp_path / "died", 5))
    again = fit_on_ray(killed, tmp_path / "killed", 2)
    assert (tmp_path / "died").exists()
    for one, two in zip(alone.history, pair.history, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    for name, weight in weights(pair).items():
        torch.testing.assert_close(weight, weights(alone)[name], rtol=1e-2, atol=1e-3)
        assert torch.equal(weight, weights(again)[name]), name


@pytest.mark.usefixtures("ray_started")
def test_what_a_user_can_cause_comes_back_in_one_line(dataset_directory, tmp_path, monkeypatch):
    from recsys.train import on_ray
    from recsys.train.on_ray import fit_on_ray

    monkeypatch.setattr(on_ray, "MAX_FAILURES", 0)  # a minute of starting workers again

    task = Task(dataset=dataset_directory, model=MODEL, train=replace(CONFIG, batch_rows=3))
    with pytest.raises(ValueError, match="3 rows a batch cannot be shared by 2 workers"):
        fit_on_ray(task, tmp_path, 2)

    def diverges(model, batch):
        return next_item(model, batch) * float("nan")

    broken = Task(dataset=dataset_directory, model=MODEL, train=CONFIG, objective=diverges)
    with pytest.raises(ValueError, match=r"^the loss is nan at step 0; lower the learning rate$"):
        fit_on_ray(broken, tmp_path, 1)
