import copy
import gc
import itertools
import math
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.data.sequences import Sequence, write_sequences
from recsys.distill.answers import TargetsConfig
from recsys.distill.objective import Distillation, DistillConfig
from recsys.evaluate.metrics import ndcg
from recsys.evaluate.ranking import rank_targets
from recsys.files import read_json, write_json
from recsys.models import TransformerConfig, build
from recsys.models.interface import torch_scorer
from recsys.models.moving_codes import move_codes
from recsys.train import loop
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit, validation_ndcg
from recsys.train.loop import Workers, train
from recsys.train.objective import LossConfig, next_item
from recsys.train.objective import objective as make_objective
from recsys.train.repeat import can_repeat

MODEL = TransformerConfig(
    width=16, num_layers=2, num_heads=2, head_width=8, feed_forward_width=32, max_length=8
)
CONFIG = TrainConfig(epochs=3, batch_rows=4, learning_rate=1e-2, checkpoint_every=4)


class Killed(Exception):
    pass


class MemoryCheckpoints:
    """Keeps states in memory and dies once, after `survives` of them."""

    def __init__(self, survives: int | None = None):
        self.state, self.survives = None, survives

    def load(self):
        return copy.deepcopy(self.state)

    def save(self, state, metrics):
        self.state = copy.deepcopy(state)
        if self.survives is not None:
            self.survives -= 1
            if self.survives == 0:
                self.survives = None
                raise Killed


def run(dataset, checkpoints, config=CONFIG, objective=next_item, shape=MODEL):
    torch.manual_seed(0)
    model = build(shape, dataset.num_items_with_padding)
    move_codes(model)
    history = train(
        model,
        dataset,
        config,
        objective=objective,
        validate=lambda model: validation_ndcg(model, dataset),
        checkpoints=checkpoints,
    ).history
    return model, history


@pytest.mark.parametrize(
    ("config", "shape"),
    [(CONFIG, MODEL), (replace(CONFIG, ema=0.9), MODEL), (CONFIG, replace(MODEL, item_codes=4))],
    ids=["plain", "ema", "codes that move"],
)
@pytest.mark.parametrize("survives", [1, 2, 3, 4])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(dataset, survives, config, shape):
    expected, expected_history = run(dataset, MemoryCheckpoints(), config, shape=shape)
    checkpoints = MemoryCheckpoints(survives)
    with pytest.raises(Killed):
        run(dataset, checkpoints, config, shape=shape)
    position = checkpoints.state["position"]
    assert position[2] > 0
    resumed, history = run(dataset, checkpoints, config, shape=shape)
    assert history == expected_history
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name]), name


class Told:
    """What a GPU repeats, told anew each time."""

    def __init__(self, function, device):
        self.function, self.device = function, device
        self.batches = []

    def __call__(self, batch, rates):
        assert all(isinstance(rate, torch.Tensor) for rate in rates)
        self.batches.append(batch.rows_BL)
        return self.function(batch, rates)


@pytest.mark.parametrize("soft", [None, "kl", "union"])
def test_a_step_that_repeats_is_the_step(dataset, store_targets, tmp_path, monkeypatch, soft):
    """But for what 32 bits round; and a run goes on where steps do not repeat."""
    objective = next_item
    if soft:
        torch.manual_seed(1)
        model = build(MODEL, dataset.num_items_with_padding)
        targets = store_targets(model, dataset, tmp_path / "targets", TargetsConfig(top_k=5))
        objective = Distillation(targets, DistillConfig(soft=soft))
    config = replace(CONFIG, ema=0.9)
    _, expected = run(dataset, MemoryCheckpoints(), config, objective)
    told = []

    def repeated(*arguments):
        told.append(Told(*arguments))
        return told[-1]

    checkpoints = MemoryCheckpoints(survives=3)
    with monkeypatch.context() as on_gpu:
        on_gpu.setattr(loop, "can_repeat", lambda *_: True)
        on_gpu.setattr(loop, "Repeated", repeated)
        _, history = run(dataset, MemoryCheckpoints(), config, objective)
        with pytest.raises(Killed):
            run(dataset, checkpoints, config, objective)
    _, resumed = run(dataset, checkpoints, config, objective)
    for found in (history, resumed):
        for entry, wanted in zip(found, expected, strict=True):
            assert entry == pytest.approx(wanted, rel=1e-3)
    read = torch.cat([rows_BL[rows_BL >= 0] for rows_BL in told[0].batches])
    assert torch.equal(read.bincount(), torch.full((len(read.unique()),), CONFIG.epochs))


def test_steps_repeat_on_a_gpu_where_they_are_known_to_be_the_same(dataset_directory, dataset):
    model, gpu = build(MODEL, dataset.num_items_with_padding), torch.device("cuda")
    assert can_repeat(model, next_item, gpu)
    assert not can_repeat(model, next_item, torch.device("cpu"))
    smooth = LossConfig(label_smoothing=0.1, leave_out_seen=False)
    assert not can_repeat(model, make_objective(smooth, dataset_directory), gpu)
    model.config = replace(MODEL, content=("text",), num_read=2)
    assert not can_repeat(model, next_item, gpu)


def test_a_run_that_is_over_leaves_nothing_behind(dataset, monkeypatch):
    runs = []
    train = loop._Run.train
    monkeypatch.setattr(
        loop._Run, "train", lambda self: (runs.append(weakref.ref(self)), train(self))
    )
    run(dataset, MemoryCheckpoints())  # what is first imported here may hold on to it
    gc.disable()
    try:
        run(dataset, MemoryCheckpoints())
    finally:
        gc.enable()
    assert runs[1]() is None


def test_a_validation_of_some_users_is_of_the_same_ones_whatever_the_workers(dataset, monkeypatch):
    torch.manual_seed(0)
    model = build(MODEL, dataset.num_items_with_padding)
    users_U, _ = dataset.targets("validation")
    ranking = rank_targets(torch_scorer(model), dataset, "validation")
    expected = ndcg(ranking.ranks_U, 10)[:: math.ceil(len(users_U) / 7)]
    assert 1 < len(expected) <= 7
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums)  # each worker's own
    of_all = validation_ndcg(model, dataset, most_users=7)
    assert of_all == pytest.approx(expected.mean())
    for rank in range(2):
        workers = Workers(rank=rank, world_size=2)
        share = validation_ndcg(model, dataset, workers, most_users=7)
        assert share == pytest.approx(expected[rank::2].mean())


def test_fit_validates_by_as_many_users_as_it_is_told(dataset_directory, dataset, tmp_path):
    train = replace(CONFIG, epochs=1, validation_users=7)
    fitted = fit(Task(dataset=dataset_directory, model=MODEL, train=train), tmp_path)
    of_some = validation_ndcg(fitted.model, dataset, most_users=7)
    assert fitted.history[-1]["ndcg@10"] == of_some != validation_ndcg(fitted.model, dataset)


def test_a_gpu_that_is_not_there_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no device for cuda"):
        run(dataset, MemoryCheckpoints(), replace(CONFIG, device="cuda"))


def test_checkpoints_are_written_in_the_middle_of_an_epoch(dataset):
    checkpoints = MemoryCheckpoints(1)
    with pytest.raises(Killed):
        run(dataset, checkpoints)
    assert checkpoints.state["position"][1] > 0


def test_a_checkpoint_that_is_due_at_an_epochs_end_is_written_then(dataset):
    config = replace(CONFIG, evaluate_every=3, checkpoint_every=1)
    checkpoints = MemoryCheckpoints()
    positions = []
    save = checkpoints.save
    checkpoints.save = lambda state, metrics: (
        positions.append(state["position"]),
        save(state, metrics),
    )
    run(dataset, checkpoints, config)
    ends = [place for place in positions if place[1] == 0]
    assert [place[0] for place in ends] == [1, 2, 3]


def test_without_a_target_to_measure_by_nothing_is_trained(dataset_directory, tmp_path):
    shutil.copytree(dataset_directory, tmp_path / "dataset")
    walks = [Sequence("u", np.arange(1, 9, dtype=np.int32), np.arange(8), 8, -1, -1)]
    (tmp_path / "dataset" / "sequences-00000.arrow").unlink()
    write_sequences(tmp_path / "dataset" / "sequences-00000.arrow", walks)
    manifest = read_json(tmp_path / "dataset" / "manifest.json")
    write_json(tmp_path / "dataset" / "manifest.json", {**manifest, "num_users": 1})
    task = Task(dataset=tmp_path / "dataset", model=MODEL, train=CONFIG, objective=next_item)
    with pytest.raises(ValueError, match="no event for validation: a user needs"):
        fit(task, tmp_path)
    again = [Sequence("u", np.array([1, 2, 1, 2], np.int32), np.arange(4), 2, 2, 3)]
    write_sequences(tmp_path / "dataset" / "sequences-00000.arrow", again)
    with pytest.raises(ValueError, match="no event for validation that is new to its user"):
        fit(task, tmp_path)


def test_the_rate_stays_down_where_epochs_have_more_batches_than_the_first(dataset, monkeypatch):
    progress, rates = [], []
    whole, schedule = loop._Run._batches, loop._Run._schedule
    calls = itertools.count()

    def batches(self, epoch):  # the first is asked how long it is
        return [None] if next(calls) == 0 else whole(self, epoch)

    def noted(self):
        rates.append(schedule(self))
        return rates[-1]

    def objective(model, batch):
        progress.append(batch.progress)
        return next_item(model, batch)

    monkeypatch.setattr(loop._Run, "_batches", batches)
    monkeypatch.setattr(loop._Run, "_schedule", noted)
    run(dataset, MemoryCheckpoints(), objective=objective)
    assert len(rates) > CONFIG.epochs + 2
    assert rates[CONFIG.epochs :] == [0.0] * (len(rates) - CONFIG.epochs)
    assert max(progress) == 1


def test_it_learns(dataset):
    _, history = run(dataset, MemoryCheckpoints(), replace(CONFIG, epochs=30, patience=30))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert max(entry["ndcg@10"] for entry in history) > 0.5


def test_it_overfits_one_user():
    class OneUser:
        num_items_with_padding = 9
        train_length_U = np.array([9])

        def history(self, user):
            return np.array([3, 1, 4, 8, 5, 2, 6, 7, 1])

        def timestamps(self, user):
            return np.arange(9)

    model = build(replace(MODEL, dropout=0.0), 9)
    config = replace(CONFIG, epochs=60, batch_rows=1, evaluate_every=60)
    history = train(
        model,
        OneUser(),
        config,
        objective=next_item,
        validate=lambda model: 0.0,
        checkpoints=MemoryCheckpoints(),
    ).history
    assert history[-1]["loss"] < 0.2
    scores_V = torch_scorer(model)([np.array([3, 1, 4])])[0]
    scores_V[[3, 1, 4]] = -np.inf  # seen items take no part
    assert scores_V.argmax() == 8


def test_the_best_weights_are_kept_and_patience_ends_the_run(dataset):
    values = iter([0.1, 0.3, 0.2, 0.1, 0.9])
    seen = []

    def validate(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(values)

    model = build(MODEL, dataset.num_items_with_padding)
    history = train(
        model,
        dataset,
        replace(CONFIG, epochs=10, patience=2),
        objective=next_item,
        validate=validate,
        checkpoints=MemoryCheckpoints(),
    ).history
    assert len(history) == 4
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, seen[1][name])


def test_averaged_weights_are_measured_and_kept_and_training_goes_on_from_its_own(dataset):
    steps = []

    def remember(model, batch):
        steps.append([p.detach().clone() for p in model.parameters()])
        return next_item(model, batch)

    config = replace(CONFIG, epochs=1, ema=0.8)
    checkpoints = MemoryCheckpoints()
    model, _ = run(dataset, checkpoints, config, remember)
    plain, _ = run(dataset, MemoryCheckpoints(), replace(config, ema=None))
    weights = [*steps[1:], list(plain.parameters())]
    averages = steps[0]
    for step, now in enumerate(weights, start=1):
        decay = min(0.8, step / (step + 10))
        averages = [decay * a + (1 - decay) * w for a, w in zip(averages, now, strict=True)]
    for average, kept in zip(averages, model.parameters(), strict=True):
        torch.testing.assert_close(kept, average)
    for name, weight in plain.state_dict().items():
        assert torch.equal(checkpoints.state["model"][name], weight)


def test_a_loss_that_is_not_finite_stops_the_run(dataset):
    def broken(model, batch):
        return next_item(model, batch) * float("nan")

    with pytest.raises(ValueError, match="loss is nan"):
        run(dataset, MemoryCheckpoints(), objective=broken)


def test_fit_goes_on_from_its_file(dataset_directory, dataset, tmp_path):
    task = Task(dataset=dataset_directory, model=MODEL, train=CONFIG)
    first = fit(task, tmp_path)
    again = fit(task, tmp_path)
    assert again.history == first.history
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_rows": 0}, "batch_rows must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"validation_users": 0}, "validation_users must be at least 1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"row_length": -1}, "row_length must be at least 1"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"warmup": 2.0}, "a share of all steps"),
        ({"ema": 1.0}, "ema must be between 0 and 1"),
        ({"seed": 2**25}, "seed must be in"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**setting)
