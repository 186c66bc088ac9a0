"""Training that moves the codes of items: differentiable product quantisation.

After Chen et al. (arXiv 1908.09756), but for their term that draws rows and vectors together: in
training every item has a row of its own, each part of which has the code of the vector that is
nearest to it. What is used is that vector, and gradients pass to it and to the row alike, as if the
row were what is used (Bengio et al., arXiv 1308.3432).
"""

import torch
from torch import Tensor, nn

from recsys.models.interface import SequenceModel
from recsys.models.item_table import CodebookItemTable, TiedItems

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
    if isinstance(model, TiedItems) and isinstance(model.item_embedding, CodebookItemTable):
        model.set_submodule("item_embedding", _MovingCodes(model.item_embedding))


def fix_codes(model: SequenceModel) -> None:
    """Undoes `move_codes` and leaves the codes as they are by then; in place."""
    if isinstance(model, TiedItems) and isinstance(model.item_embedding, _MovingCodes):
        model.set_submodule("item_embedding", model.item_embedding.coded)


class _MovingCodes(nn.Module):
    """A table of codes with a row an item, beginning with the rows that its codes stand for.

    A step finds the codes of the whole catalogue anew: V x 256 x D products, little beside scores
    of the catalogue at hundreds of positions and more.
    """

    def __init__(self, coded: CodebookItemTable):
        super().__init__()
        self.coded = coded
        self.rows_VD = nn.Parameter(coded.table().detach())
        self._stale = False

    def train(self, mode: bool = True) -> "_MovingCodes":
        """Begins a step, or a measurement: the loop says before each which of them it is."""
        super().train(mode)
        if mode or self._stale:
            self._find_codes()
        self._stale = mode
        return self

    def forward(self, items_BL: Tensor) -> Tensor:
        vectors_BLD = self.coded(items_BL)
        if not self.training:
            return vectors_BLD
        rows_BLD = nn.functional.embedding(items_BL, self.rows_VD, padding_idx=0)
        return vectors_BLD + (rows_BLD - rows_BLD.detach())

    def table(self) -> Tensor:
        """Returns table_VD."""
        return self(torch.arange(len(self.rows_VD), device=self.rows_VD.device))

    @torch.no_grad()
    def _find_codes(self) -> None:
        centroids_PCS = self.coded.centroids_PCS
        for part, rows_NS in enumerate(self.rows_VD[1:].chunk(len(centroids_PCS), dim=1)):
            self.coded.codes_VP[1:, part] = nearest(rows_NS, centroids_PCS[part])
