"""How to train, and what of it this machine can do."""

import os
import shutil
from dataclasses import dataclass
from typing import Literal

import torch

from recsys.config import require_at_least

BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the same settings serve teacher, student and recovery."""

    epochs: int = 20
    """Passes over the training positions, at most."""
    batch_rows: int = 32
    """Packed rows of a batch over all workers; a row holds the model's max_length positions."""
    row_length: int | None = None
    """Positions of a packed row; none for the model's max_length."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule."""
    encoder_learning_rate: float = 5e-5
    """The same for a text encoder that learns, which has learned much before."""
    weight_decay: float = 0.01
    """AdamW's decay, of matrices except item tables."""
    warmup: float = 0.05
    """Share of all steps over which the learning rate rises."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of the mean loss."""
    ema: float | None = None
    """Decay a step of an exponential moving average of the weights, which is what is validated and
    kept; none for the weights themselves."""
    evaluate_every: int = 1
    """Epochs between validations."""
    validation_users: int | None = None
    """Users that validations rank at most: every second, third, ... of all, always the same; none
    for all. For large logs: what is reported at the end is of all users."""
    patience: int = 5
    """Validations without a better NDCG@10 after which training stops."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one is written after every validation, too."""
    bfloat16: bool | None = None
    """Whether matrix products run in bfloat16, weights, softmax and sums staying in float32; none
    for where the processor has instructions for it."""
    matmul_precision: Literal["highest", "high", "medium"] = "medium"
    """torch.set_float32_matmul_precision of other products; medium rounds to bfloat16 on AMX."""
    compile: bool = False
    """Whether torch.compile builds the encoder and, on a processor, the softmax, where there is a
    C++ compiler; pays for runs of minutes."""
    num_threads: int | None = None
    """Threads of each worker; none for torch's own choice."""
    sharded: bool = False
    """Whether workers share out weights, gradients and moments, the item table by rows; for tables
    larger than one device. Does not go with compile, nor with item tables of low rank or of
    codes."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where each worker trains, and where a teacher answers."""
    seed: int = 0
    """Seed of weights, batches and dropout."""

    def __post_init__(self) -> None:
        require_at_least(
            1,
            epochs=self.epochs,
            batch_rows=self.batch_rows,
            row_length=self.row_length,
            evaluate_every=self.evaluate_every,
            validation_users=self.validation_users,
            patience=self.patience,
            checkpoint_every=self.checkpoint_every,
            num_threads=self.num_threads,
        )
        if not (self.learning_rate > 0 and self.encoder_learning_rate > 0 and self.clip_norm > 0):
            raise ValueError("learning rates and clip_norm must be positive")
        if not (self.weight_decay >= 0 and 0 <= self.warmup <= 1):
            raise ValueError("weight_decay must be at least 0 and warmup a share of all steps")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, not {self.ema}")
        if self.sharded and self.compile:
            raise ValueError("sharded training cannot be compiled: leave one of the two out")
        if not 0 <= self.seed < 2**23:
            raise ValueError(f"seed must be in [0, 2^23), not {self.seed}")

    def shares_out(self, num_workers: int) -> bool:
        """Returns whether as many workers share out the model: one has it all."""
        return self.sharded and num_workers > 1


def find_device(name: str) -> torch.device:
    """Returns a device by its name.

    Raises:
        ValueError: this machine has none of the kind.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no device for cuda: train on the cpu")
    return torch.device(name)


def has_bfloat16(device: str = "cpu") -> bool:
    """Returns whether processor or device have instructions for products in bfloat16."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BFLOAT16_CAPABILITIES)


def has_compiler() -> bool:
    """Returns whether torch.compile finds a C++ compiler."""
    return any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
