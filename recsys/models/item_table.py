"""The item table: one row an item, for looking up histories and for scoring the catalogue."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recsys.models.layers import not_compiled

INITIAL_DEVIATION = 0.02
NUM_READ_AT_A_TIME = 64  # texts
NUM_CENTROIDS = 256  # a code is a byte
ENCODER = "item_embedding.encoder."
"""What the names of the weights of a text encoder that learns begin with, in any model."""


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


class CodebookItemTable(nn.Module):
    """Rows put together from P vectors, each one of 256 that all items share, by codes of a byte.

    As in RecJPQ (Petrov and Macdonald, arXiv 2312.06165). The vectors learn; codes stay, those of a
    fresh table at random until `recsys.train.codes` gives them better ones, unless
    `recsys.models.moving_codes` moves them.
    """

    def __init__(self, num_items_with_padding: int, width: int, num_codes: int):
        super().__init__()
        self.codes_VP: Tensor
        codes_VP = torch.randint(NUM_CENTROIDS, (num_items_with_padding, num_codes))
        self.register_buffer("codes_VP", codes_VP.to(torch.uint8))
        centroids_PCS = torch.randn(num_codes, NUM_CENTROIDS, width // num_codes)
        self.centroids_PCS = nn.Parameter(centroids_PCS * INITIAL_DEVIATION)

    def forward(self, items_BL: Tensor) -> Tensor:
        first_P = torch.arange(self.codes_VP.shape[1], device=items_BL.device) * NUM_CENTROIDS
        index_BLP = self.codes_VP[items_BL] + first_P
        parts_BLPS = nn.functional.embedding(index_BLP, self.centroids_PCS.flatten(0, 1))
        return parts_BLPS.flatten(-2) * (items_BL > 0)[..., None]

    def table(self) -> Tensor:
        """Returns table_VD."""
        return self(torch.arange(len(self.codes_VP), device=self.codes_VP.device))


IdTable = DenseItemTable | LowRankItemTable | CodebookItemTable


class ItemText(NamedTuple):
    """Texts of items and the model that reads them."""

    encoder: nn.Module
    """tokens_NT to features_NF; padding takes no part."""
    tokens_VT: Tensor
    """Tokens of each item's text, int64."""
    padding: int
    """The token that fills up shorter texts; nothing else stands where there is no text."""
    mean_F: Tensor
    """What was subtracted from the features."""


class ItemContent(NamedTuple):
    """What is known of items besides their ids."""

    features_VF: Tensor
    """Features of text, images and the like; zeros where there are none."""
    trained_V: Tensor
    """Whether training meets the item, bool."""
    text: ItemText | None = None
    """Where features of text come first and are to learn: what makes them."""


class ContentItemTable(nn.Module):
    """Item vectors that are the sum of an id's own and of a linear map of the item's features.

    In training the id's part is left out at random, as in DropoutNet (Volkovs et al., 2017), so
    that features alone mean something: items that training never meets have nothing else. There
    these do not learn, they could only be pushed away: their rows are zero, as the padding's is,
    and their scores in a softmax are zero whatever the state.
    """

    def __init__(
        self,
        ids: IdTable,
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
        self.described_V: Tensor
        self.register_buffer("features_VF", content.features_VF)
        self.register_buffer("trained_V", content.trained_V)
        self.register_buffer("described_V", content.features_VF.any(dim=-1), persistent=False)
        self._rounded_VF: Tensor | None = None

    def forward(self, items_BL: Tensor) -> Tensor:
        features_BLF = self.features(items_BL)[items_BL]
        vectors_BLD = self._sum(self.ids(items_BL), features_BLF, items_BL)
        return vectors_BLD * self.trained_V[items_BL, None] if self.training else vectors_BLD

    def table(self) -> Tensor:
        """Returns table_VD."""
        table_VD = self._sum(self.ids.table(), self.features(), slice(None))
        return table_VD * self.trained_V[:, None] if self.training else table_VD

    def features(self, items: Tensor | None = None) -> Tensor:
        """Returns features_VF of all items; `items` are those that are looked up, if not all.

        Those of all are rounded once for all steps of a training: it takes a fifth of a step.
        """
        if items is not None or not self.training:
            return self.features_VF
        precision = self._precision()
        if self._rounded_VF is None or self._rounded_VF.dtype != precision:
            self._rounded_VF = self.features_VF.to(precision)
        return self._rounded_VF

    def _precision(self) -> torch.dtype:
        device = self.features_VF.device.type
        mixed = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if mixed else self.adapter.weight.dtype

    def _sum(self, ids: Tensor, features: Tensor, rows: Tensor | slice) -> Tensor:
        has_id = self.trained_V[rows]
        if self.training:
            dropped = torch.rand(has_id.shape, device=has_id.device) < self.id_dropout
            has_id = has_id & ~(dropped & self.described_V[rows])
        return self.adapter(features.to(self._precision())) + ids * has_id[..., None]


class TextItemTable(ContentItemTable):
    """A content table whose text encoder learns with the rest.

    Encoding every item in every step would take a thousand times as long as the step. So in a step
    the encoder reads the texts of a few items anew, half of them drawn from those that the batch
    asks for and half from the others; all other features stand as they were when the model was last
    measured. Gradients are weighted by the inverse of an item's chance to be drawn (Horvitz and
    Thompson, 1952), so that the encoder's is that of the whole catalogue on average: with the
    batch's items alone it would learn to favour whatever it is shown. The encoder's own dropout
    stays off, lest features differ from those that stand.
    """

    def __init__(
        self,
        ids: IdTable,
        width: int,
        content: ItemContent,
        id_dropout: float,
        num_read: int,
    ):
        super().__init__(ids, width, content, id_dropout)
        assert content.text is not None
        self.encoder, self.padding = content.text.encoder, content.text.padding
        self.num_read = num_read
        self.tokens_VT: Tensor
        self.mean_F: Tensor
        # What the dataset says is no part of the weights.
        self.register_buffer("tokens_VT", content.text.tokens_VT, persistent=False)
        self.register_buffer("mean_F", content.text.mean_F, persistent=False)
        self._in_step: Tensor | None = None
        self._stale = False

    def train(self, mode: bool = True) -> "TextItemTable":
        """Begins a step, or a measurement: the loop says before each which of them it is."""
        super().train(mode)
        self.encoder.eval()
        self._in_step = None
        self._stale |= mode
        return self

    @not_compiled  # a few texts, of any length
    def forward(self, items_BL: Tensor) -> Tensor:
        return super().forward(items_BL)

    def features(self, items: Tensor | None = None) -> Tensor:
        """Returns features_VF: in training those that stand, but for a few that are read anew; else
        all by the encoder as it is."""
        if self.training:
            if self._in_step is None:
                self._in_step = self._read_some(items)
            return self._in_step
        if self._stale:
            self._read_all()
        return self.features_VF

    def _read_some(self, items: Tensor | None) -> Tensor:
        readable_V = self._has_text() & self.trained_V
        asked_V = torch.zeros_like(readable_V)
        if items is not None:
            asked_V[items.flatten()] = True
        drawn, weights = [], []
        for pool_V in (readable_V & asked_V, readable_V & ~asked_V):
            pool_N = pool_V.nonzero()[:, 0]
            items = pool_N[torch.randperm(len(pool_N), device=pool_N.device)[: self.num_read // 2]]
            drawn.append(items)
            weights.append(
                torch.full(items.shape, len(pool_N) / max(len(items), 1)).to(items.device)
            )
        items_M, weight_M = torch.cat(drawn), torch.cat(weights)
        read_MF = self._read(items_M)
        # The weights are relative: a norm is clipped that other gradients have a part in.
        weight_M1 = (weight_M / weight_M[:1])[:, None]
        read_MF = read_MF.detach() + (read_MF - read_MF.detach()) * weight_M1
        others = self.features_VF[items_M, read_MF.shape[1] :].float()
        rows_MF = torch.cat([read_MF, others], dim=1)
        return self.features_VF.float().index_put((items_M,), rows_MF)

    @torch.no_grad()
    def _read_all(self) -> None:
        items_N = self._has_text().nonzero()[:, 0]
        lengths_N = self._lengths(self.tokens_VT[items_N])
        for items_M in items_N[lengths_N.argsort()].split(NUM_READ_AT_A_TIME):
            read_MF = self._read(items_M)
            # In place: a tensor that is made while measuring could not be trained with.
            self.features_VF[items_M, : read_MF.shape[1]] = read_MF.to(self.features_VF.dtype)
        self._stale = False

    def _read(self, items_M: Tensor) -> Tensor:
        tokens_MT = self.tokens_VT[items_M]
        return self.encoder(tokens_MT[:, : self._lengths(tokens_MT).max()]) - self.mean_F

    def _lengths(self, tokens_NT: Tensor) -> Tensor:
        return tokens_NT.ne(self.padding).sum(dim=1)

    def _has_text(self) -> Tensor:
        return self.tokens_VT.ne(self.padding).any(dim=1)


class TiedItems(nn.Module):
    """An encoder whose item table, `item_embedding`, serves input and output alike."""

    item_embedding: IdTable | ContentItemTable

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
    num_codes: int | None = None,
    content: ItemContent | None = None,
    id_dropout: float = 0.0,
    num_read: int = 0,
) -> IdTable | ContentItemTable:
    """Returns a dense table, or one of a rank or of codes where these are given; with `content`,
    the sum of it and of features, of which `num_read` texts are read anew in every step of
    training."""
    ids: IdTable
    if rank is not None:
        ids = LowRankItemTable(num_items_with_padding, width, rank)
    elif num_codes is not None:
        ids = CodebookItemTable(num_items_with_padding, width, num_codes)
    else:
        ids = DenseItemTable(num_items_with_padding, width)
    if content is None:
        return ids
    if num_read:
        return TextItemTable(ids, width, content, id_dropout, num_read)
    return ContentItemTable(ids, width, content, id_dropout)


def require_codes_fit(width: int, rank: int | None, num_codes: int | None) -> None:
    """Raises a ValueError if codes cannot share out the width of a table, or it has a rank, too."""
    if num_codes is None:
        return
    if rank is not None:
        raise ValueError("an item table has a rank or codes: leave item_rank or item_codes out")
    if width % num_codes:
        raise ValueError(f"item_codes must divide the width of {width}, which {num_codes} does not")
