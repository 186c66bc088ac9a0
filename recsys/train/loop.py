"""The one training loop: for teachers, students and recovery after compression.

Everything random follows from (seed, step), and the checkpoint holds model, optimiser, best weights
and position: a run that was killed ends with the weights of one that was not.
"""

import contextlib
import math
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from recsys.data.batches import Batches
from recsys.data.sequences import Dataset
from recsys.losses import compiled
from recsys.models.interface import SequenceModel
from recsys.models.item_table import ENCODER
from recsys.models.layers import compile_encoder
from recsys.train.config import TrainConfig, find_device, has_bfloat16, has_compiler
from recsys.train.objective import Objective, Repeatable, TensorBatch, to_tensors
from recsys.train.repeat import Repeated, can_repeat

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

State = dict[str, Any]
BAR = 90  # columns of a progress bar, which may be shown by another process
Validate = Callable[[SequenceModel], float]


class Checkpoints(Protocol):
    """Where a run keeps its state."""

    def load(self) -> State | None:
        """Returns the last saved state, if there is one."""
        ...

    def save(self, state: State, metrics: dict[str, float]) -> None:
        """Keeps `state`; every worker calls this at the same steps."""
        ...


class FileCheckpoints:
    """Keeps the state in one file, replaced whole."""

    def __init__(self, directory: Path):
        self.path = directory / "checkpoint.pt"

    def load(self) -> State | None:
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def save(self, state: State, metrics: dict[str, float]) -> None:
        beside = self.path.with_suffix(".tmp")
        torch.save(state, beside)
        beside.replace(self.path)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Which worker of how many this process is."""

    rank: int = 0
    world_size: int = 1


class Rates(NamedTuple):
    """What differs from step to step besides the batch: numbers, or tensors where one repeats."""

    scale: float | Tensor
    """Of the loss: the inverse of the number of targets."""
    schedule: float | Tensor
    """Share of the peak that the learning rate has."""
    moved: float | Tensor
    """Share of the way to the weights that their average moves."""


class Trained(NamedTuple):
    """What training leaves beside the weights."""

    history: list[dict[str, float]]
    """An entry for every validation."""
    peak_memory_mib: int
    """The most that a worker's process has held, over all workers and restarts."""


def train(
    model: SequenceModel,
    dataset: Dataset,
    config: TrainConfig,
    *,
    objective: Objective,
    validate: Validate,
    checkpoints: Checkpoints,
    workers: Workers = Workers(),
    bar: TextIO | None = None,
) -> Trained:
    """Trains `model` in place and ends with its best weights on validation.

    Args:
        bar: where the progress bar goes; none for a terminal, if there is one.

    Raises:
        ValueError: the loss is not finite, and the model ruined; there is nothing to train on; or
            no such device.
    """
    if config.compile and not has_compiler() and workers.rank == 0:
        print("no C++ compiler is found: training is not compiled, and slower", file=sys.stderr)
    run = _Run(model, dataset, config, objective, validate, checkpoints, workers, bar)
    with _settings(config):
        run.train()
    return Trained(run.history, run.peak_memory_mib)


class _Run:
    """The state of one training run."""

    def __init__(self, model, dataset, config, objective, validate, checkpoints, workers, bar):
        self.model, self.dataset, self.config = model, dataset, config
        self.objective, self.validate = objective, validate
        self.checkpoints, self.workers, self.bar = checkpoints, workers, bar
        self.length = config.row_length or model.config.max_length
        self.device = find_device(config.device)
        self.mesh = self._place_model()
        self.optimizer = _optimizer(model, config)
        self.bfloat16 = has_bfloat16(config.device) if config.bfloat16 is None else config.bfloat16
        self.peak_memory_mib = 0
        self.epoch = self.step_in_epoch = self.step = 0
        self.loss_sum, self.num_targets = 0.0, 0  # of the epoch so far
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.average = [p.detach().clone() for p in model.parameters()] if config.ema else []
        self.total_steps = config.epochs * len(self._batches(0))
        self._load(checkpoints.load())
        self.repeated = workers.world_size == 1 and can_repeat(model, objective, self.device)
        for group in self.optimizer.param_groups:  # what was loaded may be of another device
            group["capturable"] = self.repeated
        self.update = Repeated(self._update, self.device) if self.repeated else self._update
        if config.compile and has_compiler():
            compile_encoder(model)

    def _place_model(self) -> "DeviceMesh | None":
        """Moves the model to the device; returns the mesh of workers if they share it out."""
        if self.config.shares_out(self.workers.world_size):
            from recsys.train.sharded import shard  # slow to import

            return shard(self.model, self.device)
        self.model.to(self.device)
        return None

    def train(self) -> None:
        try:
            while self.epoch < self.config.epochs and not self._out_of_patience():
                self._epoch()
        finally:
            del self.update  # it knows this run: a circle that would keep its moments
        self.model.load_state_dict(self.best)
        self.model.eval()
        if self.mesh is None:
            self.model.to(torch.device("cpu"))

    def _epoch(self) -> None:
        batches = self._batches(self.epoch)
        batch = self._read(batches, self.step_in_epoch)
        for index in self._progress(range(self.step_in_epoch, len(batches))):
            loss = self._step(batch, batches.num_targets(index))
            if index + 1 < len(batches):  # while a GPU repeats the step
                batch = self._read(batches, index + 1)
            self.loss_sum += self._finite(loss)
            self.num_targets += batches.num_targets(index)
            self.step_in_epoch = index + 1
            if self.step % self.config.checkpoint_every == 0 and index + 1 < len(batches):
                self._save({"loss": self.loss_sum / self.num_targets})
        loss = self.loss_sum / self.num_targets
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.loss_sum, self.num_targets = 0.0, 0
        last = self.epoch == self.config.epochs
        if last or self.epoch % self.config.evaluate_every == 0:
            self._evaluate(loss)
        elif self.step % self.config.checkpoint_every == 0:
            self._save({"loss": loss})

    def _step(self, batch: TensorBatch, num_targets: int) -> Tensor:
        torch.manual_seed((self.config.seed << 40) + (self.workers.rank << 32) + self.step)
        self.model.train()
        loss = self.update(batch, self._rates(num_targets))
        self.step += 1
        return loss

    def _finite(self, loss: Tensor) -> float:
        """Returns the loss of the step before."""
        total = float(loss)
        if not math.isfinite(total):
            raise ValueError(
                f"the loss is {total} at step {self.step - 1}; lower the learning rate"
            )
        return total

    def _read(self, batches: Batches, index: int) -> TensorBatch:
        """Returns the next step's batch as `_update` takes it."""
        batch = batches.batch(index)
        if not self.repeated:
            progress = min(1.0, self.step / self.total_steps)  # epochs differ by a few batches
            return to_tensors(batch, self.device)._replace(progress=progress)
        read = to_tensors(batch, torch.device("cpu"))
        return self.objective.look_up(read) if isinstance(self.objective, Repeatable) else read

    def _rates(self, num_targets: int) -> Rates:
        # The average moves faster at first, to forget the start.
        decay = min(self.config.ema or 0.0, (self.step + 1) / (self.step + 11))
        rates = Rates(1 / num_targets, self._schedule(), 1 - decay)
        return Rates(*map(torch.tensor, rates)) if self.repeated else rates

    def _update(self, batch: TensorBatch, rates: Rates) -> Tensor:
        """Makes a step; returns the loss of the whole batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.objective(self.model, batch)
        (loss * rates.scale).backward()
        loss = self._combine(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rates.schedule
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            for average, weight in zip(self.average, self.model.parameters(), strict=True):
                average.lerp_(weight.detach(), rates.moved)
        return loss

    def _combine(self, loss: Tensor) -> Tensor:
        """Adds gradients and loss over the workers; returns the loss of the whole batch."""
        if self.workers.world_size > 1:
            # Sharded ones are summed by then.
            found = [p.grad for p in self.model.parameters() if p.grad is not None]
            gradients = [] if self.mesh else found
            flat = torch.cat([loss.reshape(1), *(g.reshape(-1) for g in gradients)])
            dist.all_reduce(flat)
            loss, *parts = flat.split([1, *(g.numel() for g in gradients)])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return loss

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Lends the model the averages for as long as it is measured."""
        self._swap_averages()
        try:
            yield
        finally:
            self._swap_averages()

    def _swap_averages(self) -> None:
        # In place: a sharded weight is known by its memory.
        if self.average:
            for average, parameter in zip(self.average, self.model.parameters(), strict=True):
                weight = parameter.detach()
                before = weight.clone()
                weight.copy_(average)
                average.copy_(before)

    def _schedule(self) -> float:
        warmup = max(1, round(self.config.warmup * self.total_steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        done = min(1.0, (self.step - warmup) / max(1, self.total_steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    def _evaluate(self, loss: float) -> None:
        with self._averaged():
            value = self.validate(self.model)
            if not self.history or value > max(entry["ndcg@10"] for entry in self.history):
                self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.history.append({"epoch": float(self.epoch), "loss": loss, "ndcg@10": value})
        self._save(self.history[-1])

    def _out_of_patience(self) -> bool:
        values = [entry["ndcg@10"] for entry in self.history]
        return bool(values) and len(values) - 1 - values.index(max(values)) >= self.config.patience

    def _batches(self, epoch: int) -> Batches:
        return epoch_batches(self.dataset, self.config, self.length, epoch, self.workers)

    def _progress(self, steps: range) -> Iterator[int]:
        label = f"epoch {self.epoch + 1}/{self.config.epochs}"
        if self.history:
            label += f" ndcg@10 {self.history[-1]['ndcg@10']:.4f}"
        off = None if self.bar is None else False
        return iter(tqdm(steps, desc=label, disable=off, leave=False, file=self.bar, ncols=BAR))

    def _save(self, metrics: dict[str, float]) -> None:
        state = {
            "model": self.model.state_dict(),
            "best": self.best,
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "position": [self.epoch, self.step_in_epoch, self.step],
            "so_far": [self.loss_sum, self.num_targets],
            "history": self.history,
            "peak_memory_mib": self._peak_memory_mib(),
        }
        if self.mesh:
            from recsys.train.sharded import join

            state = join(state)
        self.checkpoints.save(state, metrics)

    def _load(self, saved: State | None) -> None:
        if saved is None:
            return
        state = saved
        if self.mesh:
            from recsys.train.sharded import split

            state = split(saved, self.mesh)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.history = state["best"], state["history"]
        self.average = [average.to(self.device) for average in state["average"]]
        self.epoch, self.step_in_epoch, self.step = state["position"]
        self.loss_sum, self.num_targets = state["so_far"]
        self.peak_memory_mib = state["peak_memory_mib"]

    def _peak_memory_mib(self) -> int:
        """Returns the most that a worker has held so far; on a device, of the device's memory."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        peaks = torch.tensor(max(peak >> 20, self.peak_memory_mib), device=self.device)
        if self.workers.world_size > 1:
            dist.all_reduce(peaks, dist.ReduceOp.MAX)
        self.peak_memory_mib = int(peaks)
        return self.peak_memory_mib


def epoch_batches(
    dataset: Dataset, config: TrainConfig, length: int, epoch: int, workers: Workers
) -> Batches:
    """Returns a worker's batches of an epoch, in rows of `length` positions.

    Raises:
        ValueError: there is nothing to train on.
    """
    batches = Batches(
        dataset,
        num_rows=config.batch_rows,
        length=length,
        seed=config.seed,
        epoch=epoch,
        rank=workers.rank,
        world_size=workers.world_size,
    )
    if len(batches) == 0:
        raise ValueError("nothing to train on: no user has two items before the validation")
    return batches


def _optimizer(model: SequenceModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns AdamW that decays the matrices of the blocks, neither norms nor item tables; a text
    encoder has a rate of its own."""
    encoder, decayed, rest = [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith(ENCODER):
            encoder.append(parameter)
        elif parameter.ndim > 1 and not name.startswith("item_embedding"):
            decayed.append(parameter)
        else:
            rest.append(parameter)
    peak = config.learning_rate
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "peak": peak},
        {"params": rest, "weight_decay": 0.0, "peak": peak},
    ]
    if encoder:
        groups.append(
            {"params": encoder, "weight_decay": 0.0, "peak": config.encoder_learning_rate}
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


@contextlib.contextmanager
def _settings(config: TrainConfig) -> Iterator[None]:
    """Sets threads and the fast path of float32 matrix products, and puts both back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(config.num_threads or threads)
    # Medium picks oneDNN's kernels: twice as fast as MKL's on AMD, and float32 still, without AMX.
    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        with compiled(config.compile and has_compiler()), warnings.catch_warnings():
            # True of features of items and of scales of weights, and no matter for either.
            warnings.filterwarnings("ignore", message="bf16 and fp16 are mixed")
            # AdamW's, which is to be recorded, until it is.
            warnings.filterwarnings("ignore", message=".*capturable=True can impair")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
