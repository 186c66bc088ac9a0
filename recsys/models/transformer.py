"""A causal transformer over item sequences.

SASRec (Kang and McAuley, arXiv 1808.09781) in today's form: pre-norm, GELU, rotary positions, no
biases, item table tied between input and output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.config import require_at_least, require_below_one
from recsys.data.content import Kind
from recsys.models.interface import PackedRows
from recsys.models.item_table import ItemContent, TiedItems, item_table, require_codes_fit
from recsys.models.layers import Block, Dropout, causal_within, rotary_angles


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a transformer encoder."""

    width: int = 64
    """Width of the item vectors and of the residual stream (D)."""
    num_layers: int = 2
    """Number of blocks."""
    num_heads: int = 2
    """Attention heads in every block."""
    head_width: int = 32
    """Width of one head; even, since rotary positions turn pairs."""
    feed_forward_width: int = 256
    """Hidden width of the feed-forward networks."""
    max_length: int = 200
    """Longest history that is read; of a longer one the latest items count."""
    dropout: float = 0.2
    """Share of activations dropped in training."""
    linear_rank: int | None = None
    """Rank of every linear map; none for dense ones."""
    item_rank: int | None = None
    """Rank of the item table; none for a dense one."""
    item_codes: int | None = None
    """Codes of 8 bits that each item has for a row; none for a row of its own."""
    content: tuple[Kind, ...] = ()
    """Kinds of the dataset's item content that join the items' vectors; for teachers: students and
    what is served have one table, into which these are summed."""
    id_dropout: float = 0.1
    """Share of the ids left out in training where there is content, so that it learns to stand
    alone: more is better for items that nobody has met yet, and worse for all others."""
    num_read: int = 0
    """Items whose texts each step of training reads anew, so that the text encoder learns, too; 0
    leaves its features as they were prepared."""

    def __post_init__(self) -> None:
        others = ("dropout", "content", "id_dropout", "num_read")
        require_at_least(1, **{k: v for k, v in vars(self).items() if k not in others})
        if self.head_width % 2:
            raise ValueError(f"head_width must be even, not {self.head_width}")
        require_below_one(dropout=self.dropout, id_dropout=self.id_dropout)
        require_codes_fit(self.width, self.item_rank, self.item_codes)
        if self.num_read < 0 or self.num_read % 2:
            raise ValueError(f"num_read must be even and at least 0, not {self.num_read}")
        if self.num_read and self.content[:1] != ("text",):
            raise ValueError("texts to read need content whose first kind is text")


class Transformer(TiedItems):
    """Encodes histories into states that score every item by a dot product."""

    def __init__(
        self,
        config: TransformerConfig,
        num_items_with_padding: int,
        content: ItemContent | None = None,
    ):
        super().__init__()
        self.config = config
        self.item_embedding = item_table(
            num_items_with_padding,
            config.width,
            config.item_rank,
            config.item_codes,
            content,
            config.id_dropout,
            config.num_read,
        )
        self.blocks = nn.ModuleList(
            Block(
                width=config.width,
                num_heads=config.num_heads,
                head_width=config.head_width,
                feed_forward_width=config.feed_forward_width,
                dropout=config.dropout,
                rank=config.linear_rank,
            )
            for _ in range(config.num_layers)
        )
        # Tables start small, and blocks would drown out which item it was; this keeps it heard.
        self.embedding_norm = nn.LayerNorm(config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)

    def encode(self, rows: PackedRows) -> Tensor:
        """Returns states_BLD; a position sees itself and what precedes it in its own sequence."""
        allowed = causal_within(rows.segments_BL)[:, None]
        cos, sin = rotary_angles(rows.positions_BL, self.config.head_width)
        x_BLD = self._embed(rows.items_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, cos, sin, allowed)
        return self.norm(x_BLD)

    def last_state(
        self, history_BL: Tensor, length_B: Tensor, times_BM: Tensor | None = None
    ) -> Tensor:
        """Returns state_BD after the last item of right-padded histories; times are not read.

        The last block computes its query and feed-forward network for that position only.
        """
        allowed = causal_within(torch.ones_like(history_BL))[:, None]
        positions_BL = torch.arange(history_BL.shape[1], device=history_BL.device)
        positions_BL = positions_BL.expand_as(history_BL)
        cos, sin = rotary_angles(positions_BL, self.config.head_width)
        x_BLD = self._embed(history_BL)
        for block in self.blocks[:-1]:
            x_BLD = block(x_BLD, cos, sin, allowed)
        x_B1D = self.blocks[-1](x_BLD, cos, sin, allowed, length_B - 1)
        return self.norm(x_B1D[:, 0])

    def _embed(self, items_BL: Tensor) -> Tensor:
        return self.dropout(self.embedding_norm(self.item_embedding(items_BL)))
