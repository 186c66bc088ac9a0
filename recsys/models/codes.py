"""Codes of items, and training that moves them: differentiable product quantisation.

As in Chen et al. (arXiv 1908.09756): every item has a row of its own in training, each part of
which has the code of the vector that is nearest to it. What is used is that vector, and gradients
pass to it and to the row alike, as if the row were what is used (Bengio et al., arXiv 1308.3432).
"""

import torch
from torch import Tensor, nn

from recsys.models.interface import SequenceModel
from recsys.models.item_table import CodebookItemTable

NUM_ROWS_AT_A_TIME = 1 << 14


def nearest(vectors_NS: Tensor, centroids_CS: Tensor) -> Tensor:
    """Returns the index of the nearest centroid of each vector."""
    norms_C = centroids_CS.square().sum(dim=1)
    return torch.cat(
        [
            torch.addmm(norms_C, chunk, centroids_CS.T, alpha=-2).argmin(dim=1)
            for chunk in vectors_NS.split(NUM_ROWS_AT_A_TIME)
        ]
    )


def move_codes(model: SequenceModel) -> None:
    """Lets the codes of an item table move in training, if it has codes; in place."""
    assert isinstance(model, nn.Module)
    table = getattr(model, "item_embedding", None)
    if isinstance(table, CodebookItemTable):
        model.item_embedding = _MovingCodes(table)


def fix_codes(model: SequenceModel) -> None:
    """Undoes `move_codes` and leaves the codes as they are by then; in place."""
    assert isinstance(model, nn.Module)
    table = getattr(model, "item_embedding", None)
    if isinstance(table, _MovingCodes):
        model.item_embedding = table.fixed()


class _MovingCodes(CodebookItemTable):
    """A table of codes with a row an item, beginning with the rows that its codes stand for."""

    def __init__(self, table: CodebookItemTable):
        rows_VD = table.table().detach()
        num_rows, width = rows_VD.shape
        super().__init__(num_rows, width, len(table.centroids_PCS))
        self.load_state_dict(table.state_dict())
        self.rows_VD = nn.Parameter(rows_VD)

    def train(self, mode: bool = True) -> "_MovingCodes":
        """Begins a step, or a measurement: the loop says before each which of them it is."""
        super().train(mode)
        parts = self.rows_VD.detach()[1:].chunk(len(self.centroids_PCS), dim=1)
        for part, rows_NS in enumerate(parts):
            self.codes_VP[1:, part] = nearest(rows_NS, self.centroids_PCS.detach()[part])
        return self

    def forward(self, items_BL: Tensor) -> Tensor:
        vectors_BLD = super().forward(items_BL)
        if not self.training:
            return vectors_BLD
        rows_BLD = nn.functional.embedding(items_BL, self.rows_VD, padding_idx=0)
        return vectors_BLD + (rows_BLD - rows_BLD.detach())

    def fixed(self) -> CodebookItemTable:
        """Returns the table without the rows."""
        num_rows, width = self.rows_VD.shape
        table = CodebookItemTable(num_rows, width, len(self.centroids_PCS))
        table.load_state_dict(self.state_dict(), strict=False)
        return table
