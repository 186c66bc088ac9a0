"""The distillation objective: hard labels of the log mixed with the teacher's answers."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from recsys.distill import losses
from recsys.distill.answers import Answers, LiveTeacher, TargetsConfig, Teacher
from recsys.distill.targets import Targets
from recsys.losses import (
    LEFT_OUT,
    PADDING,
    SoftLabels,
    cross_entropy,
    hard_and_soft_cross_entropy,
)
from recsys.models.interface import SequenceModel
from recsys.train.objective import TensorBatch, seen_items

NUM_RELATED = 512  # items of a batch whose cosines are compared
NUM_OWN = 10  # best items of the student in the union with the teacher's
CHUNK = 1024  # positions whose scores over the catalogue are in memory at a time

Soft = Literal[
    "kl",
    "probabilities",
    "reverse-kl",
    "binary",
    "ranking",
    "list",
    "relaxed-ranking",
    "union",
    "decoupled",
]
NEEDS_SAMPLE = ("probabilities", "binary", "relaxed-ranking")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How much, and how, the student listens to the teacher."""

    soft: Soft = "kl"
    """What is learned from the teacher's list: its distribution, renormalised to its best items
    (kl); its probabilities as they are, the others' estimated from a sample (probabilities); the
    same the other way round (reverse-kl); item by item (binary); that its best are good (ranking),
    in which order (list), and better than the rest (relaxed-ranking); its distribution over its
    best and the student's (union); apart for the target and the others (decoupled)."""
    soft_weight: float = 0.7
    """Share of the loss that the teacher's list has; the rest is the log's next item."""
    soft_weight_at_end: float | None = None
    """The same at the last step, moved to evenly; none for no change."""
    temperature: float = 1.0
    """Softens the teacher's and the student's distribution alike, where there are such."""
    others_weight: float = 4.0
    """Weight of the others against that of the target, where they are apart (decoupled)."""
    trust: bool = False
    """Whether the teacher counts less where it gave the target less than its mean
    log-probability."""
    hint_weight: float = 0.0
    """Weight of matching the teacher's states through a projection."""
    contrast_weight: float = 0.0
    """Weight of telling the teacher's states apart."""
    relation_weight: float = 0.0
    """Weight of keeping the cosines between items."""
    leave_out_seen: bool = True
    """Whether the student's distribution is over what is new to the user; as with the targets."""

    def __post_init__(self) -> None:
        for name in ("soft_weight", "soft_weight_at_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {value}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.soft == "probabilities" and self.temperature != 1:
            raise ValueError("probabilities as they are have temperature 1: take kl for another")
        for name in ("others_weight", "hint_weight", "contrast_weight", "relation_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    @property
    def matches_vectors(self) -> bool:
        """Whether the loss reads states or item vectors of the teacher."""
        return bool(self.hint_weight or self.contrast_weight or self.relation_weight)

    def require(self, kept: TargetsConfig | Collection[str]) -> None:
        """Checks that the targets hold what the loss reads.

        Args:
            kept: what will be written, or the columns that were.

        Raises:
            ValueError: they do not; with the flag that keeps it.
        """
        if isinstance(kept, TargetsConfig):
            sampled, vectors = kept.num_sampled > 0, kept.vectors
        else:
            sampled, vectors = "sampled_NM" in kept, "states_NE" in kept
        if self.soft in NEEDS_SAMPLE and not sampled:
            raise ValueError(
                f"soft labels by {self.soft} need a sample of all items in the targets: "
                "write them with --keep.num-sampled 64"
            )
        if self.matches_vectors and not vectors:
            raise ValueError(
                "hint, contrast and relation need the teacher's vectors in the targets: "
                "write them with --keep.vectors"
            )


class Distillation:
    """An `Objective` that asks a teacher, who has spoken or speaks in every batch."""

    def __init__(self, source: Path | LiveTeacher, config: DistillConfig):
        """Prepares for asking.

        Args:
            source: the directory of targets, or a teacher.
        """
        # Absolute: workers start in a directory of their own.
        self.source = source.resolve() if isinstance(source, Path) else source
        self.config = config

    @cached_property
    def teacher(self) -> Teacher:
        """Opened where it is first used, so that the objective can be sent to workers.

        Raises:
            ValueError: the targets do not hold what the loss reads.
        """
        if isinstance(self.source, LiveTeacher):
            self.config.require(self.source.config)
            return self.source
        targets = Targets(self.source)
        self.config.require(targets.columns)
        return targets

    @cached_property
    def _item_vectors(self) -> Tensor:
        return self.teacher.item_vectors()

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        asked_BL = batch.rows_BL >= 0
        states_ND = model.encode(batch.inputs).float()[asked_BL]
        targets_N, answers = batch.targets_BL[asked_BL], self.teacher.answers(batch)
        seen_NL = seen_items(batch.inputs)[asked_BL] if self.config.leave_out_seen else None
        weight_N1 = self._soft_weight(answers, batch.progress)
        loss = self._labels(model, states_ND, targets_N, answers, seen_NL, weight_N1)
        return loss + self._vectors(model, states_ND, targets_N, answers)

    def _soft_weight(self, answers: Answers, progress: float) -> Tensor:
        """Returns the weight of the soft labels at each position, N1."""
        start, end = self.config.soft_weight, self.config.soft_weight_at_end
        weight = start if end is None else start + (end - start) * progress
        weight_N = torch.full_like(answers.target_logs_N, weight)
        if self.config.trust and len(weight_N):
            logs_N = answers.target_logs_N
            weight_N *= (2 * (logs_N - logs_N.mean()).sigmoid()).clamp(max=1)
        return weight_N[:, None]

    def _labels(
        self,
        model: SequenceModel,
        states_ND: Tensor,
        targets_N: Tensor,
        answers: Answers,
        seen_NL: Tensor | None,
        weight_N1: Tensor,
    ) -> Tensor:
        """Returns the loss of hard and soft labels."""
        table_VD, config = model.item_table(), self.config
        if config.soft in ("kl", "probabilities"):
            items, shares = _distribution(answers, config, table_VD.shape[0])
            return hard_and_soft_cross_entropy(
                states_ND,
                table_VD,
                targets_N,
                items,
                shares,
                left_out_NM=seen_NL,
                soft_weight=weight_N1,
                temperature=config.temperature,
            )
        hard = SoftLabels(targets_N[:, None], 1 - weight_N1)
        hard_loss = cross_entropy(states_ND, table_VD, [hard], seen_NL)
        soft_N = self._listed(model, states_ND, targets_N, answers, seen_NL)
        return hard_loss + (weight_N1[:, 0] * soft_N).sum()

    def _listed(
        self,
        model: SequenceModel,
        states_ND: Tensor,
        targets_N: Tensor,
        answers: Answers,
        seen_NL: Tensor | None,
    ) -> Tensor:
        """Returns the loss of each position by what the student says of the listed items only."""
        config, teacher_NK, items_NK = self.config, answers.logs_NK, answers.items_NK
        student_NK = _scores(model, states_ND, items_NK)
        match config.soft:
            case "reverse-kl":
                return losses.reverse_kl(student_NK, teacher_NK, config.temperature)
            case "ranking":
                return losses.ranking(student_NK)
            case "list":
                return losses.relaxed_ranking(student_NK)
            case "relaxed-ranking":
                return losses.relaxed_ranking(student_NK, _sampled(model, states_ND, answers))
            case "binary":
                student_NJ = torch.cat([student_NK, _sampled(model, states_ND, answers)], dim=1)
                labels_NJ = torch.cat([teacher_NK, answers.sampled_logs_NM], dim=1).exp()
                return losses.binary(student_NJ, labels_NJ)
            case "decoupled":
                is_target_NK = items_NK == targets_N[:, None]
                return losses.decoupled(
                    _scores(model, states_ND, targets_N[:, None]),
                    answers.target_logs_N[:, None],
                    student_NK.masked_fill(is_target_NK, LEFT_OUT),
                    teacher_NK.masked_fill(is_target_NK, LEFT_OUT),
                    temperature=config.temperature,
                    others_weight=config.others_weight,
                )
            case "union":
                table_VD = model.item_table()
                own_NJ = _own_best(states_ND, table_VD, seen_NL)
                known_NJ = (own_NJ[:, :, None] == items_NK[:, None]).any(dim=-1)
                rest_N = (1 - teacher_NK.exp().sum(dim=-1)).clamp_min(1e-6)
                rest_N = (rest_N / (len(table_VD) - 1 - items_NK.shape[1])).log()
                own_best_NJ = _scores(model, states_ND, own_NJ)
                return losses.union(student_NK, teacher_NK, own_best_NJ, known_NJ, rest_N)
            case _:
                raise AssertionError(f"{config.soft} is not about listed items only")

    def _vectors(
        self, model: SequenceModel, states_ND: Tensor, targets_N: Tensor, answers: Answers
    ) -> Tensor:
        """Returns the loss of what is matched besides labels."""
        config, loss = self.config, states_ND.new_zeros(())
        if config.hint_weight:
            share = losses.hint(states_ND, answers.states_NE)
            loss = loss + config.hint_weight * len(states_ND) * share
        if config.contrast_weight:
            loss_N = losses.contrast(states_ND, answers.states_NE)
            loss = loss + config.contrast_weight * loss_N.sum()
        if config.relation_weight:
            items_I = targets_N.unique()
            items_I = items_I[torch.randperm(len(items_I), device=items_I.device)[:NUM_RELATED]]
            teacher_IE = self._item_vectors[items_I.cpu()].float().to(items_I.device)
            difference = losses.relation(model.item_vectors(items_I), teacher_IE)
            loss = loss + config.relation_weight * len(states_ND) * difference
        return loss


def _distribution(answers: Answers, config: DistillConfig, num_rows: int) -> tuple[Tensor, Tensor]:
    """Returns items and the teacher's probabilities of them.

    A sampled item stands for all that could have been drawn in its place, so that a sum over the
    sample is on average that over the catalogue, but for what is listed anyway.
    """
    if config.soft == "kl":
        return answers.items_NK, (answers.logs_NK / config.temperature).softmax(dim=-1)
    stands_for = (num_rows - 1) / answers.sampled_NM.shape[1]
    shares_NJ = [answers.logs_NK.exp(), answers.sampled_logs_NM.exp() * stands_for]
    # What does not count must not be a label, which would bring seen items back.
    masked_NM = answers.sampled_logs_NM.isneginf()
    sampled_NM = torch.where(masked_NM, answers.items_NK[:, :1], answers.sampled_NM)
    items_NJ = torch.cat([answers.items_NK, sampled_NM], dim=1)
    return items_NJ, torch.cat(shares_NJ, dim=1)


def _scores(model: SequenceModel, states_ND: Tensor, items_NK: Tensor) -> Tensor:
    return torch.einsum("nd,nkd->nk", states_ND, model.item_vectors(items_NK))


def _sampled(model: SequenceModel, states_ND: Tensor, answers: Answers) -> Tensor:
    """Returns the student's scores of the sampled items, `LEFT_OUT` for those that do not count."""
    scores_NM = _scores(model, states_ND, answers.sampled_NM)
    return scores_NM.masked_fill(answers.sampled_logs_NM.isneginf(), LEFT_OUT)


@torch.no_grad()
def _own_best(states_ND: Tensor, table_VD: Tensor, seen_NL: Tensor | None) -> Tensor:
    """Returns the items that the student would recommend."""
    best = []
    for at in range(0, len(states_ND), CHUNK):
        scores_CV = states_ND[at : at + CHUNK] @ table_VD.T
        if seen_NL is not None:
            scores_CV.scatter_(1, seen_NL[at : at + CHUNK], LEFT_OUT)
        scores_CV[:, PADDING] = LEFT_OUT
        best.append(scores_CV.topk(NUM_OWN, dim=-1).indices)
    return torch.cat(best)
