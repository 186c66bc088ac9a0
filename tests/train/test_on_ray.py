"""Data-parallel training: the same curve as one worker, whoever dies or comes."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    ResourceRequestPriority,
    get_or_create_autoscaling_coordinator,
)

from jobs.on_ray import require_gpus
from recsys.checkpoint import ITEMS, Origin
from recsys.models import TransformerConfig, build, save
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit
from recsys.train.loop import FileCheckpoints
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
CODES = "item_embedding.codes_VP"


class DiesOnce:
    """An objective whose worker kills itself, without a word, at one step of its first life."""

    def __init__(self, directory, step):
        self.directory, self.step, self.calls = directory, step, 0

    def __call__(self, model, batch):
        self.calls += 1
        log = self.directory / f"steps-of-{dist.get_rank()}"
        with log.open("a") as file:
            file.write(".")
        if self.calls == self.step == log.stat().st_size and dist.get_rank() == 1:
            wait_for_a_checkpoint(self.directory)
            os.kill(os.getpid(), signal.SIGKILL)
        return next_item(model, batch)


class WaitsForCompany:
    """An objective that makes room for another worker after some steps alone, and waits for it."""

    def __init__(self, directory, step):
        self.directory, self.step, self.calls = directory, step, 0

    def __call__(self, model, batch):
        self.calls += 1
        with (self.directory / "sizes").open("a") as file:
            file.write(f"{dist.get_world_size()}\n")
        if self.calls == self.step and dist.get_world_size() == 1:
            wait_for_a_checkpoint(self.directory)
            ray.get(coordinator().cancel_request.remote("another job"))
            time.sleep(60)  # the worker is stopped in this
            raise TimeoutError("no other worker has come")
        return next_item(model, batch)


def wait_for_a_checkpoint(directory):
    """Returns when Ray Train would go on from one."""
    deadline = time.monotonic() + 30
    while not any(directory.rglob("checkpoint_manager_snapshot.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def coordinator():
    """Shares out the cluster's resources to elastic jobs: room comes and goes without nodes."""
    name = "AutoscalingCoordinator"
    return ray.get_actor(name, namespace=name)


def weights(fitted):
    return fitted.model.state_dict()


def steps_of(rank, directory):
    return (directory / f"steps-of-{rank}").stat().st_size


@pytest.mark.usefixtures("ray_started")
def test_codes_that_move_are_left_as_codes_that_stay(dataset_directory, tmp_path):
    from recsys.train.on_ray import fit_on_ray

    torch.manual_seed(0)
    coded = build(replace(MODEL, item_codes=4), 25)
    origin = Origin(role="compressed")
    save(coded, tmp_path / "initial", items=dataset_directory / ITEMS, origin=origin)
    train = replace(CONFIG, epochs=1)
    task = Task(
        dataset=dataset_directory, model=coded.config, train=train, initial=tmp_path / "initial"
    )
    alone, pair = fit(task, tmp_path), fit_on_ray(task, tmp_path / "pair", 2)
    assert list(weights(pair)) == list(weights(alone)) == list(coded.state_dict())
    assert pair.history[0]["loss"] == pytest.approx(alone.history[0]["loss"], rel=1e-4)
    same_VP = weights(pair)[CODES] == weights(alone)[CODES]
    assert (weights(alone)[CODES] != coded.state_dict()[CODES]).any()
    assert same_VP.float().mean() > 0.9  # sums in another order may tip what lies between two


@pytest.mark.usefixtures("ray_started")
def test_two_workers_follow_the_curve_of_one_and_a_killed_worker_changes_nothing(
    dataset_directory, tmp_path, monkeypatch
):
    from recsys.train.on_ray import fit_on_ray

    monkeypatch.chdir(dataset_directory.parent)
    task = Task(dataset=Path(dataset_directory.name), model=MODEL, train=CONFIG)
    alone = fit(task, tmp_path)
    pair = fit_on_ray(task, tmp_path / "pair", 2)
    (tmp_path / "killed").mkdir()
    killed = replace(task, objective=DiesOnce(tmp_path / "killed", 5))
    again = fit_on_ray(killed, tmp_path / "killed", 2)
    num_steps = int(FileCheckpoints(tmp_path).load()["position"][2])
    assert steps_of(1, tmp_path / "killed") == num_steps + 2  # the fourth and fifth again
    for one, two in zip(alone.history, pair.history, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    for name, weight in weights(pair).items():
        torch.testing.assert_close(weight, weights(alone)[name], rtol=1e-2, atol=1e-3)
        assert torch.equal(weight, weights(again)[name]), name
    assert pair.peak_memory_mib > 100


@pytest.mark.usefixtures("ray_started")
def test_a_sharded_run_of_one_worker_goes_on_with_two_once_there_is_room(
    dataset_directory, tmp_path, monkeypatch
):
    from recsys.train import on_ray

    monkeypatch.setattr(on_ray, "SECONDS_BETWEEN_RESIZES", 0.1)
    config = replace(CONFIG, batch_rows=3, sharded=True)
    task = Task(dataset=dataset_directory, model=MODEL, train=config)
    alone = fit(task, tmp_path)
    elastic = replace(task, objective=WaitsForCompany(tmp_path, 5))
    others = [{"CPU": 1}] * int(ray.cluster_resources()["CPU"] - 1)
    get_or_create_autoscaling_coordinator()
    request = coordinator().request_resources
    ray.get(request.remote("another job", others, 600, priority=ResourceRequestPriority.HIGH))
    grown = on_ray.fit_on_ray(elastic, tmp_path / "elastic", (1, 2))
    sizes = (tmp_path / "sizes").read_text().split()
    assert sizes[:5] == ["1"] * 5
    assert set(sizes[5:]) == {"2"}
    for one, two in zip(alone.history, grown.history, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    for name, weight in weights(grown).items():
        torch.testing.assert_close(weight, weights(alone)[name], rtol=1e-2, atol=1e-3)


@pytest.mark.usefixtures("ray_started")
def test_what_a_user_can_cause_comes_back_in_one_line(dataset_directory, tmp_path, monkeypatch):
    from recsys.train import on_ray
    from recsys.train.on_ray import fit_on_ray

    monkeypatch.setattr(on_ray, "MAX_FAILURES", 0)  # a minute of starting workers again

    task = Task(dataset=dataset_directory, model=MODEL, train=CONFIG)
    with pytest.raises(ValueError, match="the fewest workers must be at least 1, not 0"):
        fit_on_ray(task, tmp_path, (0, 2))

    def diverges(model, batch):
        return next_item(model, batch) * float("nan")

    broken = replace(task, objective=diverges)
    with pytest.raises(ValueError, match=r"^the loss is nan at step 0; lower the learning rate$"):
        fit_on_ray(broken, tmp_path, 1)


def test_more_gpus_than_there_are_are_refused(ray_started):
    with pytest.raises(ValueError, match="1000 workers need a GPU each and this machine has"):
        require_gpus(1000)
