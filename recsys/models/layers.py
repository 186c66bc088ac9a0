"""Building blocks of sequence encoders: linear maps, rotary positions, causal attention."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from recsys.models.interface import SequenceModel

Method = TypeVar("Method", bound=Callable[..., Any])
NOT_COMPILED = "not_compiled"
MASKED = -1e4  # finite in bfloat16 and float16 alike, and zero after a softmax


def not_compiled(method: Method) -> Method:
    """Marks a method that torch.compile would break into pieces or write out."""
    method.__dict__[NOT_COMPILED] = True
    return method


def compile_encoder(model: "SequenceModel") -> None:
    """Has torch.compile build `model.encode`, but for the methods that are `not_compiled`.

    They are shut out here and not where they are defined, which would import the compiler: two
    seconds of every process.
    """
    assert isinstance(model, nn.Module)
    if hasattr(model.encode, NOT_COMPILED):
        return
    for module in model.modules():
        for name in dir(type(module)):
            if hasattr(getattr(type(module), name), NOT_COMPILED):
                setattr(module, name, torch.compiler.disable(getattr(module, name)))
    model.encode = torch.compile(model.encode)


class Dropout(nn.Module):
    """Zeroes a share of the activations in training and scales up the rest.

    A mask takes 16 random bits an activation, drawn four at a time: on a CPU torch's own dropout,
    which draws one float after the other, takes a fifth of a training step.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.share):
            return x
        return x * _dropout_mask(x.detach(), self.share)


@torch.library.custom_op("recsys::dropout_mask", mutates_args=())
def _dropout_mask(x: Tensor, share: float) -> Tensor:
    """Returns what activations are multiplied by: 0, or what scales up those that stay.

    An operator of our own: torch.compile breaks its graph at random_, nine times in an encoder of
    two blocks. The mask has the type of `x`: from 16-bit words or booleans the compiled code of a
    processor takes one element at a time, also of what it fuses with them, such as a GELU. Two
    masks for one tensor in one compiled graph would be the same mask.
    """
    size = x.numel()
    words = torch.empty((size + 3) // 4, dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[:size]
    kept = bits >= round(share * 2**16) - 2**15
    return kept.to(x.dtype).mul_(1 / (1 - share)).view(x.shape)


@_dropout_mask.register_fake
def _(x: Tensor, share: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


class LowRankLinear(nn.Module):
    """A linear map of rank R: x_D @ down_DR @ up_RE, for R (D + E) weights instead of D E."""

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def linear(in_features: int, out_features: int, rank: int | None) -> nn.Module:
    """Returns a dense linear map without bias, or a factored one where `rank` is given."""
    if rank is None:
        return nn.Linear(in_features, out_features, bias=False)
    return LowRankLinear(in_features, out_features, rank)


def causal_within(segments_BL: Tensor) -> Tensor:
    """Returns allowed_BLL: whether a position sees another, of its own segment and not later.

    Compares floats, which a processor does eight at a time: compiled code computes this again in
    every block that uses it.
    """
    segments_BL = segments_BL.float()
    length, device = segments_BL.shape[1], segments_BL.device
    places_L = torch.arange(length, dtype=torch.float32, device=device)
    same_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
    return same_BLL & (places_L[:, None] >= places_L[None, :])


def rotary_angles(positions_BL: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Returns cosine and sine, (B, 1, L, head_width / 2), of rotary position embeddings.

    Su et al., RoFormer, arXiv 2104.09864: scores depend on distances only, so that a sequence may
    stand anywhere in a packed row.
    """
    half = torch.arange(head_width // 2, device=positions_BL.device, dtype=torch.float32)
    frequencies = 10_000.0 ** (-half / (head_width // 2))
    angles = positions_BL[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x_BHLW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns queries or keys turned by their positions; first half against second half."""
    first, second = x_BHLW.chunk(2, dim=-1)
    cos, sin = cos.to(first.dtype), sin.to(first.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Returns softmax(query key^T / sqrt(W)) value where `allowed`; all but that (B, H, L, W).

    Written out: on a CPU it compiles to faster code than the fused operator.
    """
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = scores.float().masked_fill(~allowed, MASKED).softmax(dim=-1)
    return weights.to(value.dtype) @ value


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a feed-forward network."""

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        head_width: int,
        feed_forward_width: int,
        dropout: float,
        rank: int | None,
    ):
        super().__init__()
        inner = num_heads * head_width
        self.num_heads = num_heads
        self.norm_1 = nn.LayerNorm(width)
        self.query = linear(width, inner, rank)
        self.key = linear(width, inner, rank)
        self.value = linear(width, inner, rank)
        self.output = linear(inner, width, rank)
        self.norm_2 = nn.LayerNorm(width)
        self.expand = linear(width, feed_forward_width, rank)
        self.contract = linear(feed_forward_width, width, rank)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BLD: Tensor, cos: Tensor, sin: Tensor, allowed: Tensor, last_B: Tensor | None = None
    ) -> Tensor:
        """Returns the block's output at every position, or at `last_B` only, as (B, 1, D)."""
        normed = self.norm_1(x_BLD)
        key = rotate(self._heads(self.key(normed)), cos, sin)
        value = self._heads(self.value(normed))
        if last_B is not None:
            rows = torch.arange(len(last_B), device=last_B.device)
            x_BLD, normed = x_BLD[rows, last_B, None], normed[rows, last_B, None]
            cos, sin = cos[rows, :, last_B, None], sin[rows, :, last_B, None]
            allowed = allowed[rows, :, last_B, None]
        query = rotate(self._heads(self.query(normed)), cos, sin)
        mixed = attend(query, key, value, allowed).transpose(1, 2).flatten(2)
        x_BLD = x_BLD + self.dropout(self.output(mixed))
        hidden = nn.functional.gelu(self.expand(self.norm_2(x_BLD)))
        return x_BLD + self.dropout(self.contract(self.dropout(hidden)))

    def _heads(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
