"""A recurrent encoder of item sequences: a light student.

GRU4Rec (Hidasi et al., arXiv 1511.06939) with the variational dropout of Gal and Ghahramani (arXiv
1512.05287): one mask a sequence on the inputs and one on the recurrent state, the same at every
step, so that dropout does not wipe out what the state is to remember.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys.config import require_at_least, require_below_one
from recsys.models.interface import PackedRows
from recsys.models.item_table import TiedItems, item_table, require_codes_fit
from recsys.models.layers import Dropout, not_compiled


@dataclass(frozen=True, kw_only=True)
class GRUConfig:
    """The shape of a recurrent encoder."""

    width: int = 64
    """Width of the item vectors (D)."""
    hidden_width: int = 64
    """Width of the recurrent state (H)."""
    num_layers: int = 1
    """Recurrent layers, one upon the other."""
    max_length: int = 200
    """Longest history that is read; of a longer one the latest items count."""
    dropout: float = 0.2
    """Share of the inputs and of the state that a sequence does without in training."""
    item_rank: int | None = None
    """Rank of the item table; none for a dense one."""
    item_codes: int | None = None
    """Codes of 8 bits that each item has for a row; none for a row of its own."""

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name != "dropout"}
        require_at_least(1, **sizes)
        require_below_one(dropout=self.dropout)
        require_codes_fit(self.width, self.item_rank, self.item_codes)


class GRU(TiedItems):
    """Encodes histories into states that score every item by a dot product."""

    def __init__(self, config: GRUConfig, num_items_with_padding: int):
        super().__init__()
        self.config = config
        self.item_embedding = item_table(
            num_items_with_padding, config.width, config.item_rank, config.item_codes
        )
        self.embedding_norm = nn.LayerNorm(config.width)
        self.layers = nn.GRU(config.width, config.hidden_width, config.num_layers, batch_first=True)
        self.output = nn.Linear(config.hidden_width, config.width, bias=False)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    @not_compiled  # a loop over positions
    def encode(self, rows: PackedRows) -> Tensor:
        """Returns states_BLD; the recurrent state starts anew with every sequence of a row.

        Written out over time: torch's own GRU neither starts anew in the middle of a row nor drops
        the same units of the state at every step.
        """
        goes_on_BL1 = (rows.positions_BL > 0)[..., None]
        x_BLD = self.embedding_norm(self.item_embedding(rows.items_BL))
        for layer in range(self.config.num_layers):
            x_BLD = self._layer(layer, x_BLD * self._mask(rows, x_BLD), goes_on_BL1, rows)
        return self.norm(self.output(x_BLD))

    def last_state(
        self, history_BL: Tensor, length_B: Tensor, times_BM: Tensor | None = None
    ) -> Tensor:
        """Returns state_BD after the last item of right-padded histories; times are not read."""
        x_BLH, _ = self.layers(self.embedding_norm(self.item_embedding(history_BL)))
        last_BH = x_BLH[torch.arange(len(length_B), device=length_B.device), length_B - 1]
        return self.norm(self.output(last_BH))

    def _layer(self, layer: int, x_BLD: Tensor, goes_on_BL1: Tensor, rows: PackedRows) -> Tensor:
        """Returns states_BLH of one layer, by the formulas of torch.nn.GRU."""
        weights = (
            getattr(self.layers, f"{name}_l{layer}")
            for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        )
        input_weight, input_bias, state_weight, state_bias = weights
        gates_BLG = nn.functional.linear(x_BLD, input_weight, input_bias)
        state_BH = gates_BLG.new_zeros(len(x_BLD), self.config.hidden_width)
        mask_BLH = self._mask(rows, state_BH[:, None].expand(-1, x_BLD.shape[1], -1))
        states = []
        for at in range(x_BLD.shape[1]):
            state_BH = state_BH * goes_on_BL1[:, at]
            kept_BH = state_BH * mask_BLH[:, at]
            reset, update, new = gates_BLG[:, at].chunk(3, dim=-1)
            recurrent = nn.functional.linear(kept_BH, state_weight, state_bias).chunk(3, dim=-1)
            update = (update + recurrent[1]).sigmoid()
            new = (new + (reset + recurrent[0]).sigmoid() * recurrent[2]).tanh()
            state_BH = new + update * (state_BH - new)
            states.append(state_BH)
        return torch.stack(states, dim=1)

    def _mask(self, rows: PackedRows, like_BLE: Tensor) -> Tensor:
        """Returns a dropout mask, (B, L, E), that is the same at every position of a sequence."""
        mask_BLE = self.dropout(torch.ones_like(like_BLE))
        places_L = torch.arange(like_BLE.shape[1], device=like_BLE.device)
        first_BL = places_L - rows.positions_BL
        return mask_BLE.gather(1, first_BL[..., None].expand_as(mask_BLE))
