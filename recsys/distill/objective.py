"""The distillation objective: hard labels of the log mixed with the teacher's answers."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from recsys.config import require_at_least
from recsys.data.sequences import Dataset
from recsys.distill import losses
from recsys.distill.answers import CHUNK, Answers, LiveTeacher, TargetsConfig, Teacher
from recsys.distill.targets import Targets, kept, require_dataset
from recsys.evaluate.report import check_catalogue
from recsys.losses import (
    LEFT_OUT,
    PADDING,
    Sample,
    SharedTable,
    SoftLabels,
    cross_entropy,
    hard_and_soft_cross_entropy,
)
from recsys.models.interface import SequenceModel
from recsys.train.objective import Drawn, Sampler, TensorBatch, sampled, seen_items

NUM_RELATED = 512  # items of a batch whose cosines are compared, or that rank as many positions
NUM_SUITED = 32  # positions of those that are an item's list
POPULARITY_POWER = 0.5  # items stand for the catalogue by their count to this power
NUM_OWN = 10  # best items of the student in the union with the teacher's

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
NEEDS_CATALOGUE = ("probabilities", "union")
TEMPERED = ("kl", "reverse-kl", "decoupled")
UNION_NEEDS_TABLE = (
    "soft labels by union need the whole item table in every worker: "
    "give --distill.soft kl, or leave --train.sharded out"
)
VECTOR_WEIGHTS = ("hint_weight", "contrast_weight", "relation_weight", "item_ranking_weight")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How much, and how, the student listens to the teacher."""

    soft: Soft = "union"
    """What is learned from the teacher's list: its distribution, renormalised to its best items
    (kl); its probabilities as they are, the others' estimated from a sample (probabilities); the
    same the other way round (reverse-kl); item by item (binary); that its best are good (ranking),
    in which order (list), and better than the rest (relaxed-ranking); its distribution over its
    best and the student's (union); apart for the target and the others (decoupled)."""
    soft_weight: float = 0.9
    """Share of the loss that the teacher's list has; the rest is the log's next item."""
    soft_weight_at_end: float | None = None
    """The same at the last step, moved to evenly; none for no change."""
    temperature: float = 1.0
    """Softens the teacher's and the student's distribution alike (kl, reverse-kl, decoupled)."""
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
    item_ranking_weight: float = 0.0
    """Weight of ranking, for each item, the positions that it suits as the teacher does."""
    leave_out_seen: bool = True
    """Whether the student's distribution is over what is new to the user; as with the targets."""
    num_negatives: int | None = None
    """Items, drawn for a batch by the square root of their count, that stand for the catalogue in
    the student's softmax, beside the target and the teacher's list; none for the whole catalogue.
    For catalogues of a hundred thousand items and more."""

    def __post_init__(self) -> None:
        require_at_least(1, num_negatives=self.num_negatives)
        for name in ("soft_weight", "soft_weight_at_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {value}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.soft not in TEMPERED and self.temperature != 1:
            raise ValueError(
                f"soft labels by {self.soft} have no temperature: "
                f"give --distill.soft one of {', '.join(TEMPERED)} for one"
            )
        if self.soft in NEEDS_CATALOGUE and self.num_negatives:
            raise ValueError(
                f"soft labels by {self.soft} are over the whole catalogue: "
                "give --distill.num-negatives None, or --distill.soft kl"
            )
        for name in ("others_weight", *VECTOR_WEIGHTS):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    @property
    def matches_vectors(self) -> bool:
        """Whether the loss reads states or item vectors of the teacher."""
        return any(getattr(self, name) for name in VECTOR_WEIGHTS)

    @property
    def unread(self) -> set[str]:
        """Columns of targets that the loss does not read."""
        sample = set() if self.soft in NEEDS_SAMPLE else {"sampled_NM", "sampled_scores_NM"}
        reads_states = self.hint_weight or self.contrast_weight or self.item_ranking_weight
        return sample | (set() if reads_states else {"states_NE"})

    def require_table(self, *, shared_out: bool) -> None:
        """Checks that the student has what the loss reads.

        Args:
            shared_out: whether each of several workers has some rows of the item table only.

        Raises:
            ValueError: it has not.
        """
        if shared_out and self.soft == "union":
            raise ValueError(UNION_NEEDS_TABLE)

    def require(self, kept: TargetsConfig) -> None:
        """Checks that the teacher's answers hold what the loss reads.

        Raises:
            ValueError: they do not; with the flag that keeps it.
        """
        if kept.leave_out_seen != self.leave_out_seen:
            raise ValueError(
                "teacher and student must speak of the same items: give both of "
                "--keep.no-leave-out-seen and --distill.no-leave-out-seen, or none"
            )
        if self.soft in NEEDS_SAMPLE and not kept.num_sampled:
            raise ValueError(
                f"soft labels by {self.soft} need a sample of all items in the targets: "
                "write them with --keep.num-sampled 64"
            )
        if self.matches_vectors and not kept.vectors:
            raise ValueError(
                "hint, contrast, relation and item ranking need the teacher's vectors in the "
                "targets: write them with --keep.vectors"
            )


class _Softmax(NamedTuple):
    """A softmax as `cross_entropy` takes it."""

    table_VD: Tensor | SharedTable | Sample
    targets_N: Tensor
    """Columns of the targets."""
    items_NK: Tensor
    """Columns of other labels."""
    left_out_NW: Tensor | None


@dataclass(frozen=True)
class _Positions:
    """What is known at the N training positions of a batch."""

    model: SequenceModel
    states_ND: Tensor
    """The student's states."""
    targets_N: Tensor
    seen_NL: Tensor | None
    answers: Answers
    drawn: Drawn | None
    """What stands for the catalogue, if not all of it does."""
    asked_N1: Tensor | None = None
    """Whether the teacher was asked there; none for everywhere."""

    @cached_property
    def table_VD(self) -> Tensor | SharedTable:
        """The student's item table."""
        return self.model.item_table()

    @property
    def is_new_NK(self) -> Tensor:
        """Whether what the teacher lists is new to the user: a list that is longer than that ends
        with what is not, at `LEFT_OUT`."""
        return self.answers.logs_NK > LEFT_OUT / 2

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.table_VD) - 1 if self.drawn is None else self.drawn.num_items

    def had(self, places_P: Tensor, items_I: Tensor) -> Tensor:
        """Returns had_PI: whether users have had some items at some positions; none where seen
        items take part."""
        count, device = len(items_I), items_I.device
        had_PI = torch.zeros(len(places_P), count + 1, dtype=torch.bool, device=device)
        if self.seen_NL is not None:  # what is none of the items goes to a column of its own
            column_V = torch.full((self.num_items + 1,), count, device=device)
            column_V[items_I] = torch.arange(count, device=device)
            had_PI.scatter_(1, column_V[self.seen_NL[places_P]], True)
        return had_PI[:, :count]

    def softmax(self, items_NK: Tensor) -> _Softmax:
        """Returns what the target and some items compete with."""
        if self.drawn is None:
            return _Softmax(self.table_VD, self.targets_N, items_NK, self.seen_NL)
        sample, columns_NK, left_out_NW = sampled(
            self.model, self.drawn, self.targets_N, items_NK, self.seen_NL
        )
        return _Softmax(sample, torch.zeros_like(self.targets_N), columns_NK, left_out_NW)

    def scores(self, items_NK: Tensor) -> Tensor:
        """Returns the student's scores of some items."""
        return torch.einsum("nd,nkd->nk", self.states_ND, self.model.item_vectors(items_NK))

    def sampled_scores(self) -> Tensor:
        """Returns those of the sampled items, `LEFT_OUT` for those that do not count."""
        scores_NM = self.scores(self.answers.sampled_NM)
        return scores_NM.masked_fill(self.answers.sampled_logs_NM.isneginf(), LEFT_OUT)


class Distillation:
    """An `Objective` that asks a teacher, who has spoken or speaks in every batch."""

    def __init__(
        self,
        source: Path | LiveTeacher,
        config: DistillConfig,
        dataset: Path | None = None,
        *,
        length: int | None = None,
    ):
        """Prepares for asking.

        Args:
            source: the directory of targets, or a teacher.
            dataset: what is trained on, to check that the source speaks of it, and to draw
                negatives.
            length: how many events the student is trained on at once, to check that a live teacher
                reads as many.

        Raises:
            ValueError: the answers do not hold what the loss reads, or are of another dataset, or
                of a teacher that reads less, or there is no dataset to count items in.
        """
        if config.num_negatives and dataset is None:
            raise ValueError("items are drawn by their counts: num_negatives needs the dataset")
        if isinstance(source, LiveTeacher):
            config.require(source.config)
            if dataset:
                check_catalogue(source.directory, Dataset.open(dataset))
            if length:
                source.require_length(length)
        else:
            config.require(kept(source))
            if dataset:
                require_dataset(source, dataset)
        # Absolute: workers start in a directory of their own.
        self.source = source.resolve() if isinstance(source, Path) else source
        self.dataset = dataset and dataset.resolve()
        self.config = config

    @cached_property
    def teacher(self) -> Teacher:
        """Opened where it is first used, so that the objective can be sent to workers."""
        if isinstance(self.source, LiveTeacher):
            return self.source
        return Targets(self.source, unread=self.config.unread)

    @cached_property
    def _sampler(self) -> Sampler:
        assert self.dataset is not None
        return Sampler(self.dataset, POPULARITY_POWER)

    @cached_property
    def _item_vectors(self) -> Tensor:
        return self.teacher.item_vectors()

    @property
    def repeats(self) -> bool:
        """Whether every step is the same operations: no means over what was asked, nothing drawn,
        no weight that moves, and a teacher who has spoken."""
        config = self.config
        others = (config.trust, config.matches_vectors, config.num_negatives)
        moves = config.soft_weight_at_end is not None
        return isinstance(self.source, Path) and not moves and not any(others)

    def look_up(self, batch: TensorBatch) -> TensorBatch:
        """Returns the batch with the teacher's `Scores` at all positions of its rows; where nothing
        was asked, they are those of another position."""
        assert isinstance(self.teacher, Targets)
        rows_N = batch.rows_BL.flatten().clamp(min=0).numpy()
        return batch._replace(found=self.teacher.look_up(rows_N))

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        asked_BL = batch.rows_BL >= 0
        everywhere = batch.found is not None

        def chosen(of_BL: Tensor) -> Tensor:
            return of_BL.flatten(0, 1) if everywhere else of_BL[asked_BL]

        states_ND = chosen(model.encode(batch.inputs).float())
        count = self.config.num_negatives
        at = _Positions(
            model,
            states_ND,
            chosen(batch.targets_BL),
            chosen(seen_items(batch.inputs)) if self.config.leave_out_seen else None,
            batch.found.answers() if everywhere else self.teacher.answers(batch),
            self._sampler.draw(count, states_ND.device) if count else None,
            asked_BL.flatten()[:, None] if everywhere else None,
        )
        return self._labels(at, batch.progress) + self._vectors(at)

    def _soft_weight(self, answers: Answers, progress: float) -> Tensor:
        """Returns the weight of the soft labels at each position, N1."""
        start, end = self.config.soft_weight, self.config.soft_weight_at_end
        weight = start if end is None else start + (end - start) * progress
        weight_N = torch.full_like(answers.target_logs_N, weight)
        if self.config.trust and len(weight_N):
            logs_N = answers.target_logs_N
            weight_N *= (2 * (logs_N - logs_N.mean()).sigmoid()).clamp(max=1)
        return weight_N[:, None]

    def _labels(self, at: _Positions, progress: float) -> Tensor:
        """Returns the loss of hard and soft labels."""
        config, weight_N1 = self.config, self._soft_weight(at.answers, progress)
        hard_N1 = 1 - weight_N1
        if at.asked_N1 is not None:
            hard_N1, weight_N1 = hard_N1 * at.asked_N1, weight_N1 * at.asked_N1
        if config.soft in ("kl", "probabilities"):
            items_NJ, shares_NJ = _distribution(at, config)
            softmax = at.softmax(items_NJ)
            return hard_and_soft_cross_entropy(
                at.states_ND,
                softmax.table_VD,
                softmax.targets_N,
                softmax.items_NK,
                shares_NJ,
                left_out_NM=softmax.left_out_NW,
                hard_weight=hard_N1,
                soft_weight=weight_N1,
                temperature=config.temperature,
            )
        softmax = at.softmax(at.answers.items_NK[:, :0])
        hard = SoftLabels(softmax.targets_N[:, None], hard_N1)
        hard_loss = cross_entropy(at.states_ND, softmax.table_VD, [hard], softmax.left_out_NW)
        return hard_loss + (weight_N1[:, 0] * self._listed(at)).sum()

    def _listed(self, at: _Positions) -> Tensor:
        """Returns the loss of each position by what the student says of the listed items only."""
        config, answers, items_NK = self.config, at.answers, at.answers.items_NK
        student_NK, teacher_NK = at.scores(items_NK), answers.logs_NK
        student_NK = student_NK.masked_fill(~at.is_new_NK, LEFT_OUT)
        match config.soft:
            case "reverse-kl":
                return losses.reverse_kl(student_NK, teacher_NK, config.temperature)
            case "ranking":
                return losses.ranking(student_NK)
            case "list":
                return losses.relaxed_ranking(student_NK)
            case "relaxed-ranking":
                return losses.relaxed_ranking(student_NK, at.sampled_scores())
            case "binary":
                student_NJ = torch.cat([student_NK, at.sampled_scores()], dim=1)
                labels_NJ = torch.cat([teacher_NK, answers.sampled_logs_NM], dim=1).exp()
                return losses.binary(student_NJ, labels_NJ, num_items=at.num_items)
            case "decoupled":
                is_target_NK = items_NK == at.targets_N[:, None]
                return losses.decoupled(
                    at.scores(at.targets_N[:, None]),
                    answers.target_logs_N[:, None],
                    student_NK.masked_fill(is_target_NK, LEFT_OUT),
                    teacher_NK.masked_fill(is_target_NK, LEFT_OUT),
                    temperature=config.temperature,
                    others_weight=config.others_weight,
                )
            case "union":
                own_NJ = _own_best(at)
                known_NJ = (own_NJ[:, :, None] == items_NK[:, None]).any(dim=-1)
                rest_N = (1 - teacher_NK.exp().sum(dim=-1)).clamp_min(1e-6)
                rest_N = (rest_N / max(at.num_items - items_NK.shape[1], 1)).log()
                return losses.union(student_NK, teacher_NK, at.scores(own_NJ), known_NJ, rest_N)
            case _:
                raise AssertionError(f"{config.soft} is not about listed items only")

    def _vectors(self, at: _Positions) -> Tensor:
        """Returns the loss of what is matched besides labels: none where a worker's share of the
        batch is all padding."""
        config, teacher_NE = self.config, at.answers.states_NE
        loss, count = at.states_ND.new_zeros(()), len(at.states_ND)
        if config.hint_weight and count:
            loss = loss + config.hint_weight * count * losses.hint(at.states_ND, teacher_NE)
        if config.contrast_weight and count:
            loss = loss + config.contrast_weight * losses.contrast(at.states_ND, teacher_NE).sum()
        if config.relation_weight or config.item_ranking_weight:
            items_I = _some(at.targets_N.unique())
            teacher_IE = self._item_vectors[items_I.cpu()].float().to(items_I.device)
            vectors_ID = at.model.item_vectors(items_I)  # of a shared table, all workers ask for
            if not count:
                return loss + vectors_ID.sum()
            if config.relation_weight:
                difference = losses.relation(vectors_ID, teacher_IE)
                loss = loss + config.relation_weight * count * difference
            if config.item_ranking_weight:
                places_P = _some(torch.arange(count, device=items_I.device))
                # Doubles are rounded on no device; of fewer bits, products have other orders.
                student_PI = at.states_ND[places_P].double() @ vectors_ID.double().T
                teacher_PI = teacher_NE[places_P].double() @ teacher_IE.double().T
                teacher_PI = teacher_PI.masked_fill(at.had(places_P, items_I), LEFT_OUT)
                ranked_I = losses.item_ranking(student_PI, teacher_PI, NUM_SUITED)
                loss = loss + config.item_ranking_weight * count * ranked_I.mean().float()
        return loss


def _some(values_N: Tensor) -> Tensor:
    """Returns `NUM_RELATED` of the values at most, drawn by torch's random state."""
    return values_N[torch.randperm(len(values_N), device=values_N.device)[:NUM_RELATED]]


def _distribution(at: _Positions, config: DistillConfig) -> tuple[Tensor, Tensor]:
    """Returns items and the teacher's probabilities of them.

    A sampled item stands for all that could have been drawn in its place, so that a sum over the
    sample is on average that over the catalogue, but for what is listed anyway.
    """
    answers = at.answers
    # What is not new must not be a label, which would bring it back.
    items_NK = torch.where(at.is_new_NK, answers.items_NK, at.targets_N[:, None])
    if config.soft == "kl":
        return items_NK, (answers.logs_NK / config.temperature).softmax(dim=-1)
    stands_for = at.num_items / answers.sampled_NM.shape[1]
    shares_NJ = [answers.logs_NK.exp(), answers.sampled_logs_NM.exp() * stands_for]
    masked_NM = answers.sampled_logs_NM.isneginf()
    sampled_NM = torch.where(masked_NM, items_NK[:, :1], answers.sampled_NM)
    items_NJ = torch.cat([items_NK, sampled_NM], dim=1)
    return items_NJ, torch.cat(shares_NJ, dim=1)


@torch.no_grad()
def _own_best(at: _Positions) -> Tensor:
    """Returns the items that the student would recommend; the teacher's best where there are fewer
    that are new to the user.

    Raises:
        ValueError: no worker has the whole table.
    """
    if isinstance(at.table_VD, SharedTable):
        raise ValueError(UNION_NEEDS_TABLE)
    size, count = max(CHUNK // len(at.table_VD), 1), min(NUM_OWN, at.num_items)
    best = [at.targets_N.new_empty(0, count)]
    for start in range(0, len(at.states_ND), size):
        part = slice(start, start + size)
        scores_CV = at.states_ND[part] @ at.table_VD.T
        if at.seen_NL is not None:
            scores_CV.scatter_(1, at.seen_NL[part], LEFT_OUT)
        scores_CV[:, PADDING] = LEFT_OUT
        own_CJ, items_CJ = scores_CV.topk(count, dim=-1)
        best.append(torch.where(own_CJ > LEFT_OUT / 2, items_CJ, at.answers.items_NK[part, :1]))
    return torch.cat(best)
