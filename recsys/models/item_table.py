"""The item table: one row an item, for looking up histories and for scoring the catalogue."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

INITIAL_DEVIATION = 0.02


class DenseItemTable(nn.Module):
    """V rows of width D; row 0 is padding: masked in histories, never recommended."""

    def __init__(self, num_items_with_padding: int, width: int):
        super().__init__()
        weight_VD = torch.randn(num_items_with_padding, width) * INITIAL_DEVIATION
        weight_VD[0] = 0
        self.weight = nn.Parameter(weight_VD)

    def forward(self, items_BL: Tensor) -> Tensor:
        return nn.functional.embedding(items_BL, self.weight, padding_idx=0)

    def table(self) -> Tensor:
        """Returns table_VD."""
        return self.weight


class LowRankItemTable(nn.Module):
    """A table of rank R, kept as codes_VR and basis_RD and never multiplied out to be stored."""

    def __init__(self, num_items_with_padding: int, width: int, rank: int):
        super().__init__()
        codes_VR = torch.randn(num_items_with_padding, rank) * INITIAL_DEVIATION
        codes_VR[0] = 0
        self.codes_VR = nn.Parameter(codes_VR)
        self.basis_RD = nn.Parameter(torch.randn(rank, width) * rank**-0.5)

    def forward(self, items_BL: Tensor) -> Tensor:
        return nn.functional.embedding(items_BL, self.codes_VR, padding_idx=0) @ self.basis_RD

    def table(self) -> Tensor:
        """Returns table_VD."""
        return self.codes_VR @ self.basis_RD


class ItemContent(NamedTuple):
    """What is known of items besides their ids."""

    features_VF: Tensor
    """Features of text, images and the like; zeros where there are none."""
    trained_V: Tensor
    """Whether training meets the item, bool."""


class ContentItemTable(nn.Module):
    """Item vectors that are the sum of an id's own and of a linear map of the item's features.

    In training the id's part is left out at random, as in DropoutNet (Volkovs et al., 2017), so
    that features alone mean something: items that training never meets have nothing else. There
    these take no part in the softmax, where they could only be pushed away: their rows are zero, as
    the padding's is.
    """

    def __init__(
        self,
        ids: DenseItemTable | LowRankItemTable,
        width: int,
        content: ItemContent,
        id_dropout: float,
    ):
        super().__init__()
        self.ids = ids
        self.adapter = nn.Linear(content.features_VF.shape[1], width, bias=False)
        self.id_dropout = id_dropout
        self.features_VF: Tensor
        self.trained_V: Tensor
        self.register_buffer("features_VF", content.features_VF)
        self.register_buffer("trained_V", content.trained_V)

    def forward(self, items_BL: Tensor) -> Tensor:
        features_BLF, trained_BL = self.features_VF[items_BL], self.trained_V[items_BL]
        vectors_BLD = self._sum(self.ids(items_BL), features_BLF, trained_BL)
        return vectors_BLD * trained_BL[..., None] if self.training else vectors_BLD

    def table(self) -> Tensor:
        """Returns table_VD."""
        table_VD = self._sum(self.ids.table(), self.features_VF, self.trained_V)
        return table_VD * self.trained_V[:, None] if self.training else table_VD

    def _sum(self, ids: Tensor, features: Tensor, has_id: Tensor) -> Tensor:
        if self.training:
            dropped = torch.rand(has_id.shape, device=has_id.device) < self.id_dropout
            has_id = has_id & ~(dropped & features.any(dim=-1))
        return self.adapter(features.to(self.adapter.weight.dtype)) + ids * has_id[..., None]


class TiedItems(nn.Module):
    """An encoder whose item table, `item_embedding`, serves input and output alike."""

    item_embedding: DenseItemTable | LowRankItemTable | ContentItemTable

    def item_table(self) -> Tensor:
        """Returns table_VD; scores are state_BD @ table_VD.T."""
        return self.item_embedding.table()

    def item_vectors(self, items: Tensor) -> Tensor:
        """Returns the table's rows of `items`."""
        return self.item_embedding(items)


def item_table(
    num_items_with_padding: int,
    width: int,
    rank: int | None,
    content: ItemContent | None = None,
    id_dropout: float = 0.0,
) -> DenseItemTable | LowRankItemTable | ContentItemTable:
    """Returns a dense table, or one of rank `rank` where that is given; with `content`, the sum of
    it and of features."""
    ids = (
        DenseItemTable(num_items_with_padding, width)
        if rank is None
        else LowRankItemTable(num_items_with_padding, width, rank)
    )
    return ids if content is None else ContentItemTable(ids, width, content, id_dropout)
