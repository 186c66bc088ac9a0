"""Several models as one: the mean of their scores, or a weighted sum."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from recsys.models.gru import GRUConfig
from recsys.models.hstu import HSTUConfig
from recsys.models.interface import PackedRows, SequenceModel
from recsys.models.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """What the members of an ensemble are."""

    members: tuple[TransformerConfig | HSTUConfig | GRUConfig, ...]
    """The shape of each member."""
    weights: tuple[float, ...] = ()
    """What each member's scores count; none for their mean."""

    def __post_init__(self) -> None:
        if len(self.weights) not in (0, len(self.members)):
            raise ValueError(f"{len(self.members)} members cannot have {len(self.weights)} weights")
        if len({member.max_length for member in self.members}) != 1:
            raise ValueError("an ensemble needs members, all of the same max_length")

    @property
    def max_length(self) -> int:
        """Longest history that is read."""
        return self.members[0].max_length

    @property
    def width(self) -> int:
        """Width of the joined item vectors."""
        return sum(member.width for member in self.members)


class Ensemble(nn.Module):
    """Adds up the weighted scores of its members.

    Scores are dot products, and a sum of dot products is that of the vectors laid end to end: the
    ensemble is a model like any other.
    """

    def __init__(self, config: EnsembleConfig, members: Sequence[SequenceModel]):
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(cast(Sequence[nn.Module], members))
        self.weights = config.weights or (1 / len(members),) * len(members)

    def encode(self, rows: PackedRows) -> Tensor:
        """Returns states_BLD of all members, laid end to end."""
        return torch.cat([member.encode(rows) for member in self._members()], dim=-1)

    def last_state(
        self, history_BL: Tensor, length_B: Tensor, times_BM: Tensor | None = None
    ) -> Tensor:
        """Returns state_BD after the last item of right-padded histories."""
        states = [member.last_state(history_BL, length_B, times_BM) for member in self._members()]
        return torch.cat(states, dim=-1)

    def item_table(self) -> Tensor:
        """Returns table_VD; scores are state_BD @ table_VD.T."""
        return self._weighted([member.item_table() for member in self._members()])

    def item_vectors(self, items: Tensor) -> Tensor:
        """Returns the table's rows of `items`."""
        return self._weighted([member.item_vectors(items) for member in self._members()])

    def _weighted(self, vectors: Sequence[Tensor]) -> Tensor:
        parts = [part * weight for part, weight in zip(vectors, self.weights, strict=True)]
        return torch.cat(parts, dim=-1)

    def _members(self) -> Iterator[SequenceModel]:
        return (cast(SequenceModel, member) for member in self.members)
