"""Weights of few bits, and training with weights as they will be stored.

In quantisation-aware training (Jacob et al., arXiv 1712.05877) every forward pass rounds the
weights, and gradients pass the rounding as if it were not there (Bengio et al., arXiv 1308.3432).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recsys.models.interface import SequenceModel
from recsys.models.item_table import DenseItemTable, LowRankItemTable


def block_length(width: int) -> int:
    """Returns how many neighbours of a row of the item table share a scale: 32; in a row of at most
    16, which the engine would fill up to a block, 16. The last block of a row may be shorter."""
    return 16 if width <= 16 else 32


def group_length(width: int, bits: int) -> int:
    """Returns how many inputs of a linear map share a scale: all at 8 bits; at 4 from 16 to 32 that
    divide them, or all."""
    if bits == 8:
        return width
    return next((n for n in range(32, 15, -1) if width % n == 0), width)


def quantize(rows_NK: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Returns int8 codes_NK and float16 scales, (N, blocks): rows = codes * scales, nearly.

    The largest value of a block has the code that is furthest from zero, -8 or -128, whatever its
    sign, by a scale of either sign: 4 bits then err a fifth less than with codes from -7 to 7.

    Args:
        block: neighbours in a row that share a scale; the last ones of a row may be fewer.
    """
    limit = 2 ** (bits - 1)
    num_rows, width = rows_NK.shape
    blocks = nn.functional.pad(rows_NK.float(), (0, -width % block)).view(num_rows, -1, block)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scales = (largest / -limit).half()
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = (blocks / scales.float()).round().clamp(-limit, limit - 1)
    return codes.to(torch.int8).view(num_rows, -1)[:, :width], scales[..., 0]


def round_weights(model: SequenceModel, bits: int) -> None:
    """Has the model round its matrices and its item table wherever it uses them; in place.

    Vectors of a codebook stay as they are.

    Raises:
        ValueError: it is recurrent: torch's own loop takes its weights before they are rounded.
    """
    assert isinstance(model, nn.Module)
    for module in list(model.modules()):
        match module:
            case nn.Linear():
                block = group_length(module.in_features, bits)
                parametrize.register_parametrization(module, "weight", _Rounded(bits, block))
            case DenseItemTable():
                block = block_length(module.weight.shape[1])
                parametrize.register_parametrization(module, "weight", _Rounded(bits, block))
            case LowRankItemTable():
                block = block_length(module.codes_VR.shape[1])
                parametrize.register_parametrization(module, "codes_VR", _Rounded(bits, block))
                block = group_length(len(module.basis_RD), bits)
                rounded = _Rounded(bits, block, transposed=True)
                parametrize.register_parametrization(module, "basis_RD", rounded)
            case nn.GRU():
                raise ValueError("a GRU cannot be trained with rounded weights: leave +epochs out")


def keep_weights(model: SequenceModel) -> None:
    """Undoes `round_weights`, and leaves the weights that were rounded; in place."""
    assert isinstance(model, nn.Module)
    for module in list(model.modules()):
        rounded = getattr(module, "parametrizations", None)
        for name in list(rounded) if isinstance(rounded, nn.ModuleDict) else ():
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)


class _Rounded(nn.Module):
    """A matrix as it is after it was stored and read."""

    def __init__(self, bits: int, block: int, *, transposed: bool = False):
        super().__init__()
        self.bits, self.block, self.transposed = bits, block, transposed

    def forward(self, weight: Tensor) -> Tensor:
        rows_NK = weight.detach().T if self.transposed else weight.detach()
        codes_NK, scales = quantize(rows_NK, self.bits, self.block)
        width = rows_NK.shape[1]
        stored_NK = codes_NK * scales.float().repeat_interleave(self.block, dim=1)[:, :width]
        stored = stored_NK.T if self.transposed else stored_NK
        return weight + (stored - weight.detach())
