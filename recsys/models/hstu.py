"""Hierarchical sequential transduction units: attention that knows when things happened.

Zhai et al., arXiv 2402.17152. Attention weights are SiLUs of scores, not shares of a softmax, so
that how much of a thing there was is not lost; scores have learned biases by distance in positions
and by time; and what is gathered is gated element by element instead of a feed-forward network.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.config import require_at_least, require_below_one
from recsys.models.interface import PackedRows
from recsys.models.item_table import TiedItems, item_table
from recsys.models.layers import Dropout, causal_within

NUM_TIME_BUCKETS = 64
BUCKET_WIDTH = 0.301  # of the natural logarithm of seconds, as in the authors' code


@dataclass(frozen=True, kw_only=True)
class HSTUConfig:
    """The shape of an HSTU encoder."""

    width: int = 64
    """Width of the item vectors and of the residual stream (D)."""
    num_layers: int = 2
    """Number of blocks."""
    num_heads: int = 2
    """Attention heads in every block."""
    head_width: int = 32
    """Width of one head."""
    max_length: int = 200
    """Longest history that is read; of a longer one the latest items count."""
    dropout: float = 0.2
    """Share of activations dropped in training."""
    time: Literal["none", "past", "target"] = "past"
    """The times that attention sees: none; those of past events; or also that of the item to
    predict, which is a track of its own: a server must know when it is asked."""
    item_rank: int | None = None
    """Rank of the item table; none for a dense one."""

    def __post_init__(self) -> None:
        others = ("dropout", "time")
        require_at_least(1, **{name: v for name, v in vars(self).items() if name not in others})
        require_below_one(dropout=self.dropout)


class HSTU(TiedItems):
    """Encodes histories and their times into states that score every item by a dot product."""

    def __init__(self, config: HSTUConfig, num_items_with_padding: int):
        super().__init__()
        self.config = config
        self.item_embedding = item_table(num_items_with_padding, config.width, config.item_rank)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.embedding_norm = nn.LayerNorm(config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def encode(self, rows: PackedRows) -> Tensor:
        """Returns states_BLD; a position sees itself and what precedes it in its own sequence."""
        allowed_BLL = causal_within(rows.segments_BL)
        distance_BLL = rows.positions_BL[:, :, None] - rows.positions_BL[:, None, :]
        distance_BLL = distance_BLL.clamp(0, self.config.max_length - 1)
        now_BL = rows.next_times_BL if self.config.time == "target" else rows.times_BL
        bucket_BLL = time_bucket(now_BL[:, :, None] - rows.times_BL[:, None, :])
        x_BLD = self.dropout(self.embedding_norm(self.item_embedding(rows.items_BL)))
        for block in self.blocks:
            x_BLD = block(x_BLD, allowed_BLL, distance_BLL, bucket_BLL)
        return self.norm(x_BLD)

    def last_state(
        self, history_BL: Tensor, length_B: Tensor, times_BM: Tensor | None = None
    ) -> Tensor:
        """Returns state_BD after the last item of right-padded histories.

        Raises:
            ValueError: there are no times, and the model reads them.
        """
        if times_BM is None:
            if self.config.time != "none":
                raise ValueError("this model reads the times of events, and there are none")
            times_BM = torch.zeros_like(nn.functional.pad(history_BL, (0, 1)))
        positions_BL = torch.arange(history_BL.shape[1], device=history_BL.device)
        states_BLD = self.encode(
            PackedRows(
                items_BL=history_BL,
                positions_BL=positions_BL.expand_as(history_BL),
                segments_BL=torch.ones_like(history_BL),
                times_BL=times_BM[:, :-1],
                next_times_BL=times_BM[:, 1:],
            )
        )
        return states_BLD[torch.arange(len(length_B), device=length_B.device), length_B - 1]


def time_bucket(seconds: Tensor) -> Tensor:
    """Returns the bucket of each distance in time; buckets grow with the logarithm."""
    logarithm = seconds.abs().clamp(min=1).float().log()
    return (logarithm / BUCKET_WIDTH).long().clamp(max=NUM_TIME_BUCKETS - 1)


class _Block(nn.Module):
    def __init__(self, config: HSTUConfig):
        super().__init__()
        inner = config.num_heads * config.head_width
        self.num_heads, self.max_length = config.num_heads, config.max_length
        self.norm_1 = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, 4 * inner, bias=False)
        self.distance_bias = nn.Parameter(torch.randn(config.max_length) * 0.02)
        self.time_bias = (
            nn.Parameter(torch.randn(NUM_TIME_BUCKETS) * 0.02) if config.time != "none" else None
        )
        self.norm_2 = nn.LayerNorm(inner)
        self.output = nn.Linear(inner, config.width, bias=False)
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_normal_(self.project.weight)
        nn.init.xavier_normal_(self.output.weight)

    def forward(
        self, x_BLD: Tensor, allowed_BLL: Tensor, distance_BLL: Tensor, bucket_BLL: Tensor
    ) -> Tensor:
        projected = nn.functional.silu(self.project(self.norm_1(x_BLD)))
        gate_BLE, *others = projected.chunk(4, dim=-1)
        value, query, key = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in others
        )
        bias_BLL = self.distance_bias[distance_BLL]
        if self.time_bias is not None:
            bias_BLL = bias_BLL + self.time_bias[bucket_BLL]
        scores = query @ key.transpose(-1, -2) + bias_BLL[:, None].to(query.dtype)
        weights = nn.functional.silu(scores) * (allowed_BLL[:, None] / self.max_length).to(
            scores.dtype
        )
        mixed_BLE = (weights @ value).transpose(1, 2).flatten(2)
        return x_BLD + self.output(self.dropout(self.norm_2(mixed_BLE) * gate_BLE))
