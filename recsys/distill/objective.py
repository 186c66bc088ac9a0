"""The distillation objective: hard labels of the log mixed with the teacher's soft ones."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from recsys.distill.targets import Targets
from recsys.losses import hard_and_soft_cross_entropy
from recsys.models.interface import SequenceModel
from recsys.train.objective import TensorBatch, seen_items


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How much, and how, the student listens to the teacher."""

    soft_weight: float = 0.7
    """Share of the loss that the teacher's distribution has; the rest is the log's next item."""
    temperature: float = 1.0
    """Softens the teacher's and the student's distribution alike."""
    leave_out_seen: bool = True
    """Whether the student's distribution is over what is new to the user; as with the targets."""

    def __post_init__(self) -> None:
        if not 0 <= self.soft_weight <= 1:
            raise ValueError(f"soft_weight must be in [0, 1], not {self.soft_weight}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")


class Distillation:
    """An `Objective` that reads the stored targets."""

    def __init__(self, directory: Path, config: DistillConfig):
        # Absolute: workers start in a directory of their own.
        self.directory, self.config = directory.resolve(), config

    @cached_property
    def targets(self) -> Targets:
        """Opened where it is first used, so that the objective can be sent to workers."""
        return Targets(self.directory)

    def __call__(self, model: SequenceModel, batch: TensorBatch) -> Tensor:
        states_BLD = model.encode(batch.inputs).float()
        asked = batch.rows_BL >= 0
        items_NK, scores_NK = self.targets.look_up(batch.rows_BL[asked].cpu().numpy())
        left_out_NM = seen_items(batch.inputs)[asked] if self.config.leave_out_seen else None
        return hard_and_soft_cross_entropy(
            states_BLD[asked],
            model.item_table(),
            batch.targets_BL[asked],
            torch.from_numpy(items_NK).to(asked.device),
            torch.from_numpy(scores_NK).to(asked.device),
            left_out_NM=left_out_NM,
            soft_weight=self.config.soft_weight,
            temperature=self.config.temperature,
        )
