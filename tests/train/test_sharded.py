"""Sharded training, without Ray: what two processes give is what one gives."""

import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh

from recsys.data.batches import Batches, empty_batch
from recsys.data.sequences import Dataset
from recsys.distill.answers import TargetsConfig
from recsys.distill.objective import Distillation, DistillConfig
from recsys.losses import SoftLabels, cross_entropy
from recsys.models import TransformerConfig, build
from recsys.models.interface import PackedRows
from recsys.models.item_table import DenseItemTable
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit, validation_ndcg
from recsys.train.loop import FileCheckpoints, Workers, train
from recsys.train.objective import TensorBatch, next_item, to_tensors
from recsys.train.sharded import ShardedItemTable, shard

CPU = torch.device("cpu")
MODEL = TransformerConfig(
    width=16,
    num_layers=2,
    num_heads=2,
    head_width=8,
    feed_forward_width=32,
    max_length=8,
    dropout=0.0,
)
CONFIG = TrainConfig(
    epochs=2,
    batch_rows=3,
    learning_rate=1e-2,
    checkpoint_every=3,
    clip_norm=0.3,
    ema=0.8,
    bfloat16=False,
    matmul_precision="highest",
    sharded=True,
)


SOFTS = [
    *(DistillConfig(soft=soft) for soft in ("kl", "probabilities", "decoupled")),
    DistillConfig(soft="kl", num_negatives=16),
    DistillConfig(soft="decoupled", num_negatives=16),
]


class Killed(Exception):
    pass


class FirstWorkers(FileCheckpoints):
    """Checkpoints of the first worker; the run dies after some of them, if that is asked."""

    def __init__(self, directory, rank=0, survives=None):
        directory.mkdir(exist_ok=True)
        super().__init__(directory)
        self.rank, self.survives = rank, survives

    def save(self, state, metrics):
        if self.rank == 0:
            super().save(state, metrics)
        if self.survives is not None:
            self.survives -= 1
            if self.survives == 0:
                raise Killed


def begin(task, directory, workers):
    """Leaves the second checkpoint of a run that died then."""
    with pytest.raises(Killed):
        fit(task, FirstWorkers(directory, workers.rank, survives=2), workers=workers)


def loss_and_gradients(table, part, temperature):
    """Returns loss, its gradients by the vectors of some items, and the table's weight."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(0, 31, (11, 2), generator=generator)[part]  # 0, too
    states_ND = torch.randn(11, 16, generator=generator)[part] + table(items).sum(dim=1)
    states_ND.retain_grad()
    labels = [
        SoftLabels(
            torch.randint(0, 31, (11, 3), generator=generator)[part],
            torch.rand(11, 3, generator=generator)[part],
            t,
        )
        for t in (1.0, temperature)
    ]
    left_out_NM = torch.randint(0, 31, (11, 7), generator=generator)[part]
    loss = cross_entropy(states_ND, table.table(), labels, left_out_NM)
    (loss * 3).backward()
    return loss.detach(), states_ND.grad, table.weight.grad


def check_table(rank):
    """Two workers with 8 and 3 of 11 positions: value and gradients of one worker."""
    torch.manual_seed(0)
    whole = DenseItemTable(31, 16)
    sharded = ShardedItemTable(whole, init_device_mesh("cpu", (2,)), CPU)
    loss, states_gradient, gradient = loss_and_gradients(whole, slice(None), 2.0)
    part = slice(0, 8) if rank == 0 else slice(8, 11)
    share, share_states_gradient, share_gradient = loss_and_gradients(sharded, part, 2.0)
    dist.all_reduce(share)
    torch.testing.assert_close(share, loss)
    torch.testing.assert_close(share_states_gradient, states_gradient[part])
    torch.testing.assert_close(share_gradient.full_tensor(), gradient)
    assert len(sharded.weight.to_local()) == (16 if rank == 0 else 15)


def check_distillation(rank, dataset_directory, targets):
    """Two workers with half of a batch each: the loss of one worker."""
    dataset = Dataset.open(dataset_directory)
    batches = Batches(dataset, num_rows=4, length=8, seed=0, epoch=0)
    batch = to_tensors(batches.batch(0), CPU)
    half = slice(2 * rank, 2 * rank + 2)
    part = TensorBatch(
        PackedRows(*(values[half] for values in batch.inputs)),
        batch.targets_BL[half],
        batch.rows_BL[half],
    )
    torch.manual_seed(0)
    model = build(MODEL, dataset.num_items_with_padding)

    def loss_of(soft, batch):
        torch.manual_seed(0)
        return Distillation(targets, soft, dataset_directory)(model, batch).detach()

    expected = {soft: loss_of(soft, batch) for soft in SOFTS}
    shard(model, CPU)
    for soft, loss in expected.items():
        share = loss_of(soft, part)
        dist.all_reduce(share)
        torch.testing.assert_close(share, loss, rtol=1e-4, atol=1e-4)
    # One worker has nothing left: both take part in the same look-ups.
    share = part if rank == 0 else to_tensors(empty_batch(2, 8), CPU)
    for soft in SOFTS:
        loss_of(replace(soft, relation_weight=1.0), share)
    with pytest.raises(ValueError, match=r"leave --train\.sharded out"):
        Distillation(targets, DistillConfig(soft="union"))(model, part)


def check_averages(rank, dataset_directory, directory):
    """Averages and weights change places, also where a validation is no better than another."""
    dataset = Dataset.open(dataset_directory)
    torch.manual_seed(0)
    model = build(MODEL, dataset.num_items_with_padding)
    values = iter([0.2, 0.1, 0.3, 0.0])
    workers = Workers(rank=rank, world_size=2)

    def validate(model):
        validation_ndcg(model, dataset, workers, sharded=True)
        return next(values)

    checkpoints = FirstWorkers(directory, rank)
    config = replace(CONFIG, epochs=4)
    settings = {"objective": next_item, "validate": validate, "checkpoints": checkpoints}
    trained = train(model, dataset, config, workers=workers, **settings)
    assert len(trained.history) == 4


def worker(rank, port, dataset, directory):
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    check_table(rank)
    check_distillation(rank, dataset, directory / "targets")
    check_averages(rank, dataset, directory / "averages")
    with pytest.raises(ValueError, match="leave item_rank, item_codes and content out"):
        shard(build(replace(MODEL, item_rank=4), 31), CPU)
    task = Task(dataset=dataset, model=MODEL, train=CONFIG)
    workers = Workers(rank=rank, world_size=2)
    fitted = fit(task, FirstWorkers(directory / "two", rank), workers=workers)
    size = sum(p.to_local().numel() for p in fitted.model.parameters())
    assert size <= 0.6 * sum(p.numel() for p in fitted.model.parameters())
    begin(task, directory / "two then one", workers)
    fit(task, FirstWorkers(directory / "one then two", rank), workers=workers)
    dist.destroy_process_group()


def test_two_workers_share_out_the_weights_and_end_with_those_of_one(
    dataset, dataset_directory, store_targets, tmp_path
):
    task = Task(dataset=dataset_directory, model=MODEL, train=CONFIG)
    alone = fit(task, FirstWorkers(tmp_path / "one"))
    keep = TargetsConfig(top_k=5, num_sampled=8, vectors=True)
    store_targets(alone.model, dataset, tmp_path / "targets", keep)
    begin(task, tmp_path / "one then two", Workers())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(worker, (port, dataset_directory, tmp_path), nprocs=2)
    fit(task, FirstWorkers(tmp_path / "two then one"))
    for name in ("two", "two then one", "one then two"):
        state = FirstWorkers(tmp_path / name).load()
        assert state["position"] == FirstWorkers(tmp_path / "one").load()["position"]
        for ours, expected in zip(state["history"], alone.history, strict=True):
            assert ours == pytest.approx(expected, rel=1e-3), name
        for key, weight in alone.model.state_dict().items():
            torch.testing.assert_close(state["best"][key], weight, rtol=1e-2, atol=1e-3)
