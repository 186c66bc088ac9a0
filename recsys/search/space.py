"""What is searched over: the student's shape, how it listens to the teacher, its compression."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from recsys.compress import CodebookItems, FactorizeItems, Quantize, Recipe, Step
from recsys.config import require_at_least, to_json
from recsys.distill.objective import DistillConfig
from recsys.files import hash_of
from recsys.models import GRUConfig, StudentConfig, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How long to search, and over what."""

    num_trials: int = 6
    """Students to train, besides the one that the pipeline has made."""
    max_concurrent: int = 2
    """Trials at the same time, one logical CPU each; a search that goes on has as many as it began
    with."""
    epochs: int = 10
    """Epochs that a trial's student trains."""
    widths: tuple[int, ...] = (8, 12, 16, 24, 32)
    """Widths of a student."""
    num_layers: tuple[int, ...] = (1, 2)
    """Blocks of a student."""
    expansions: tuple[int, ...] = (1, 2, 4)
    """Feed-forward widths, of a GRU those of its state, as multiples of the width."""
    dropouts: tuple[float, ...] = (0.0, 0.1, 0.3)
    """Dropouts of a student; one that listens to a teacher needs little."""
    soft_weights: tuple[float, ...] = (0.7, 0.9, 1.0)
    """Shares of the teacher in the loss."""
    item_rank_shares: tuple[float, ...] = (0.0, 0.5)
    """Ranks of the item table as shares of the width; 0 keeps it dense."""
    item_codes: tuple[int, ...] = (0,)
    """Codes of 8 bits for each item, instead of a rank, for catalogues of more than 256; 0 for
    none, and fewer where they do not divide the width."""
    bits: tuple[Literal[32, 16, 8, 4], ...] = (8, 4)
    """Bits in which weights are stored."""
    recover_epochs: int = 3
    """Epochs of recovery after the item table is factored or put into codes, and of transformers
    with rounded weights for those of 4 bits."""
    seed: int = 0
    """Seed of the sampler."""

    def __post_init__(self) -> None:
        require_at_least(0, num_trials=self.num_trials, recover_epochs=self.recover_epochs)
        require_at_least(1, max_concurrent=self.max_concurrent, epochs=self.epochs)
        for name, values in choices(self).items():
            if not values:
                raise ValueError(
                    f"there is nothing to choose a {name} from: give one value or more"
                )


@dataclass(frozen=True, kw_only=True)
class ChooseConfig:
    """Which point of the frontier is served."""

    point: str = "smallest"
    """The "smallest" or the "fastest" within the tolerance, or the name of a point."""
    tolerance: float = 0.01
    """Share of the teacher's NDCG@10 on validation that it may lose."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate."""

    model: StudentConfig
    """The student's shape."""
    distill: DistillConfig
    """How it listens to the teacher."""
    recipe: Recipe
    """How it is compressed."""

    @property
    def name(self) -> str:
        """Returns a short name that tells points apart."""
        config = self.model
        return f"w{config.width}-l{config.num_layers}-{hash_of(to_json(self))[:6]}"


def choices(config: SearchConfig) -> dict[str, tuple]:
    """Returns the values that each coordinate of a sample may have."""
    return {
        "width": config.widths,
        "num_layers": config.num_layers,
        "expansion": config.expansions,
        "dropout": config.dropouts,
        "soft_weight": config.soft_weights,
        "item_rank_share": config.item_rank_shares,
        "item_codes": config.item_codes,
        "bits": config.bits,
    }


def shaped(student: StudentConfig, width: int, num_layers: int, expansion: int) -> StudentConfig:
    """Returns the student at another width and depth, the number of heads and inner widths going
    along; heads themselves keep their width, that of the teacher's where it starts as one."""
    inner, shape = width * expansion, dict[str, int]()
    match student:
        case TransformerConfig():
            heads = max(1, width // student.head_width)
            shape = {"num_heads": heads, "feed_forward_width": inner}
        case GRUConfig():
            shape = {"hidden_width": inner}
    # Neither rank nor codes of the item table: those are steps of the recipe.
    shape |= {"width": width, "num_layers": num_layers}
    return replace(student, item_rank=None, item_codes=None, **shape)


def point_from(
    sample: Mapping[str, Any], student: StudentConfig, distill: DistillConfig, config: SearchConfig
) -> Point:
    """Returns the point that a sample describes; what is not searched is taken from `student` and
    `distill`."""
    width = sample["width"]
    model = shaped(student, width, sample["num_layers"], sample["expansion"])
    model = replace(model, dropout=sample["dropout"])
    steps: list[Step] = []
    if sample["item_codes"]:
        codes = math.gcd(width, sample["item_codes"])
        steps.append(CodebookItems(codes=codes, recover_epochs=config.recover_epochs))
    elif sample["item_rank_share"]:
        rank = max(1, round(width * sample["item_rank_share"]))
        steps.append(FactorizeItems(rank=rank, recover_epochs=config.recover_epochs))
    if sample["bits"] == 4 and isinstance(student, TransformerConfig):
        steps.append(Quantize(bits=4, recover_epochs=config.recover_epochs))
    elif sample["bits"] != 32:
        steps.append(Quantize(bits=sample["bits"]))
    distill = replace(distill, soft_weight=sample["soft_weight"])
    return Point(model=model, distill=distill, recipe=tuple(steps))
