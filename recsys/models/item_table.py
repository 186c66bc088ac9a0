"""The item table: one row an item, for looking up histories and for scoring the catalogue."""

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


def item_table(
    num_items_with_padding: int, width: int, rank: int | None
) -> DenseItemTable | LowRankItemTable:
    """Returns a dense table, or one of rank `rank` where that is given."""
    if rank is None:
        return DenseItemTable(num_items_with_padding, width)
    return LowRankItemTable(num_items_with_padding, width, rank)
