"""Several models as one: the mean of their scores."""

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

    def __post_init__(self) -> None:
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
    """Averages the scores of its members.

    Scores are dot products, and a sum of dot products is that of the vectors laid end to end: the
    ensemble is a model like any other.
    """

    def __init__(self, config: EnsembleConfig, members: Sequence[SequenceModel]):
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(cast(Sequence[nn.Module], members))

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
        tables = [member.item_table() for member in self._members()]
        return torch.cat(tables, dim=-1) / len(self.members)

    def item_vectors(self, items: Tensor) -> Tensor:
        """Returns the table's rows of `items`."""
        vectors = [member.item_vectors(items) for member in self._members()]
        return torch.cat(vectors, dim=-1) / len(self.members)

    def _members(self) -> Iterator[SequenceModel]:
        return (cast(SequenceModel, member) for member in self.members)
