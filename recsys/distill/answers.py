"""What a teacher answers at training positions, and asking one that is at hand."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recsys.checkpoint import read_model_config, scores_seen
from recsys.config import require_at_least
from recsys.losses import LEFT_OUT, PADDING
from recsys.models import load_model, read_shape
from recsys.models.interface import SequenceModel
from recsys.train.objective import TensorBatch, seen_items

CHUNK = 2**26  # scores over the catalogue that are in memory at a time


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """What is kept of the teacher's answers."""

    top_k: int = 64
    """Items kept at each position (K)."""
    num_sampled: int = 0
    """Items drawn from the whole catalogue at each position (M), with their scores: what the
    teacher thinks of what it would not recommend."""
    vectors: bool = False
    """Whether the teacher's state at each position is kept, and its item table."""
    leave_out_seen: bool = True
    """Whether answers are about what is new to the user, as what is recommended is."""

    def __post_init__(self) -> None:
        require_at_least(1, top_k=self.top_k)
        require_at_least(0, num_sampled=self.num_sampled)

    def bytes_per_position(self, width: int) -> int:
        """Returns the bytes that a training position takes on disk.

        Args:
            width: of the teacher's states.
        """
        # Items in four bytes, scores and states in two; the log-normaliser and the target's score.
        return (self.top_k + self.num_sampled) * (4 + 2) + 4 + 2 + 2 * width * self.vectors


class Answers(NamedTuple):
    """What the teacher says at N positions; log-probabilities are of a softmax over all items or,
    where seen ones are left out, over what is new to the user and the target."""

    items_NK: Tensor
    """Its best items, best first, int64."""
    logs_NK: Tensor
    """Their log-probabilities."""
    target_logs_N: Tensor
    """Those of the log's next items."""
    sampled_NM: Tensor
    """Items drawn uniformly from the catalogue."""
    sampled_logs_NM: Tensor
    """Their log-probabilities; minus infinity for those among the best or left out."""
    states_NE: Tensor
    """Its states; of width 0 where they are not kept."""


class Teacher(Protocol):
    """Whoever can be asked for answers, stored or live."""

    def answers(self, batch: TensorBatch) -> Answers:
        """Returns the answers at the batch's training positions, in order."""
        ...

    def item_vectors(self) -> Tensor:
        """Returns the teacher's table_VE.

        Raises:
            ValueError: it is not kept.
        """
        ...


class Scores(NamedTuple):
    """Answers as scores, and what makes probabilities of them; for the rest see `Answers`."""

    items_NK: Tensor
    scores_NK: Tensor
    target_scores_N: Tensor
    sampled_NM: Tensor
    sampled_scores_NM: Tensor
    """`LEFT_OUT` for items among the best or left out."""
    states_NE: Tensor
    log_normalizers_N: Tensor

    def answers(self) -> Answers:
        """Returns scores as log-probabilities, in 32 bits, and items in 64."""
        normalizers_N1 = self.log_normalizers_N[:, None]
        sampled_scores_NM = self.sampled_scores_NM.float()
        masked_NM = sampled_scores_NM <= LEFT_OUT
        return Answers(
            self.items_NK.long(),
            self.scores_NK.float() - normalizers_N1,
            self.target_scores_N.float() - self.log_normalizers_N,
            self.sampled_NM.long(),
            (sampled_scores_NM - normalizers_N1).masked_fill(masked_NM, -torch.inf),
            self.states_NE.float(),
        )


@torch.no_grad()
def ask(
    teacher: SequenceModel,
    batch: TensorBatch,
    config: TargetsConfig,
    generator: torch.Generator | None = None,
) -> Scores:
    """Returns the teacher's answers at the training positions of a batch."""
    inputs, asked_BL = batch.inputs, batch.rows_BL >= 0
    states_NE, seen_NL = teacher.encode(inputs)[asked_BL], seen_items(inputs)[asked_BL]
    table_VE, targets_N = teacher.item_table(), batch.targets_BL[asked_BL]
    shape = (len(states_NE), config.num_sampled)
    sampled_NM = torch.randint(1, len(table_VE), shape, generator=generator).to(targets_N.device)
    size = max(CHUNK // len(table_VE), 1)
    top_k = min(config.top_k, len(table_VE) - 1)
    parts = []
    for states, seen, targets, sampled in zip(
        *(x.split(size) for x in (states_NE, seen_NL, targets_N, sampled_NM)), strict=True
    ):
        scores_NV = states @ table_VE.T
        target_scores_N1 = scores_NV.gather(1, targets[:, None])
        if config.leave_out_seen:
            scores_NV.scatter_(1, seen, LEFT_OUT)
        scores_NV[:, PADDING] = -torch.inf
        normalizers_N = scores_NV.logsumexp(dim=-1)
        if config.leave_out_seen:  # a target that is a repeat takes part, as in the student's loss
            repeats_N = scores_NV.gather(1, targets[:, None])[:, 0] <= LEFT_OUT
            with_target_N = torch.logaddexp(normalizers_N, target_scores_N1[:, 0])
            normalizers_N = torch.where(repeats_N, with_target_N, normalizers_N)
        scores_NK, items_NK = scores_NV.topk(top_k, dim=-1)
        sampled_scores_NM = scores_NV.scatter_(1, items_NK, LEFT_OUT).gather(1, sampled)
        scores = (scores_NK, target_scores_N1[:, 0], sampled, sampled_scores_NM)
        kept_NE = states if config.vectors else states[:, :0]
        parts.append(Scores(items_NK, *scores, kept_NE, normalizers_N))
    return Scores(*(torch.cat(part) for part in zip(*parts, strict=True)))


def require_scores(teacher: Path, config: TargetsConfig) -> None:
    """Checks that a teacher has learned what it is asked.

    Raises:
        ValueError: it is asked about items that the user has had, which it has not learned.
    """
    if not config.leave_out_seen and not scores_seen(read_model_config(teacher)):
        raise ValueError(
            f"{teacher} has not learned to score what a user has had: train it, or its members, "
            "with --loss.no-leave-out-seen, or leave --keep.no-leave-out-seen and "
            "--distill.no-leave-out-seen out"
        )


def require_length(most: int, length: int) -> None:
    """Checks that a teacher that reads `most` events can be asked live by a student that is trained
    on `length` at once.

    Raises:
        ValueError: it cannot.
    """
    if length > most:
        raise ValueError(
            f"the student is trained on {length} events at once and its teacher reads {most}: "
            f"give --train.row-length {most}, and --model.max-length no more, or leave --live out"
        )


class LiveTeacher:
    """A `Teacher` that answers anew in every batch: nothing to store, and a forward pass a step."""

    def __init__(self, directory: Path, config: TargetsConfig):
        require_scores(directory, config)
        self.directory, self.config = directory.resolve(), config

    def require_length(self, length: int) -> None:
        """Checks that the teacher has learned to read as much as a student is trained on at once.

        Raises:
            ValueError: it has not.
        """
        require_length(read_shape(self.directory).max_length, length)

    @cached_property
    def model(self) -> SequenceModel:
        """Loaded where it is first used, so that the teacher can be sent to workers.

        That must not move the random state of the step in which it is, which is one step if a run
        is killed and goes on, and another if not.
        """
        with torch.random.fork_rng(devices=[]):
            return load_model(self.directory)

    def answers(self, batch: TensorBatch) -> Answers:
        """Returns the answers at the batch's training positions, in order."""
        self.model.to(batch.rows_BL.device)
        with torch.autocast(batch.rows_BL.device.type, enabled=False):
            return ask(self.model, batch, self.config).answers()

    def item_vectors(self) -> Tensor:
        """Returns the teacher's table_VE."""
        with torch.no_grad():
            return self.model.item_table()
