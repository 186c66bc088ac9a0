"""The union of compression steps and the recipe that strings them together.

Pruning, factoring and codebooks return a model of a smaller config; quantisation says how the
serving graph stores the weights. A new step adds its config to `Step` and what does it to
`OF_TRANSFORMERS` or `OF_ANY`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from recsys.compress.codebook import CodebookItems, codebook_items
from recsys.compress.graph import Precision
from recsys.compress.low_rank import (
    FactorizeItems,
    FactorizeLinears,
    factorize_items,
    factorize_linears,
)
from recsys.compress.prune import (
    PruneFeedForward,
    PruneHeads,
    PruneLayers,
    PruneLength,
    PruneWidth,
    prune_feed_forward,
    prune_heads,
    prune_layers,
    prune_length,
    prune_width,
)
from recsys.compress.quantize import Quantize
from recsys.models import StudentConfig, without_content
from recsys.models.interface import SequenceModel
from recsys.models.rounding import round_weights
from recsys.models.transformer import Transformer

Step = (
    PruneLayers
    | PruneHeads
    | PruneFeedForward
    | PruneWidth
    | PruneLength
    | FactorizeLinears
    | FactorizeItems
    | CodebookItems
    | Quantize
)
Recipe = tuple[Step, ...]
Recover = Callable[[SequenceModel, Step, int | None], SequenceModel]
"""Trains a model after a step; with weights of some bits, where they are to be rounded."""
OF_TRANSFORMERS: Mapping[type, Callable[..., Transformer]] = {
    PruneLayers: prune_layers,
    PruneHeads: prune_heads,
    PruneFeedForward: prune_feed_forward,
    PruneWidth: prune_width,
    FactorizeLinears: factorize_linears,
}
"""What makes a transformer smaller, by the step."""
OF_ANY: Mapping[type, Callable[..., SequenceModel]] = {
    PruneLength: prune_length,
    FactorizeItems: factorize_items,
    CodebookItems: codebook_items,
}
"""What makes any model smaller that can be served, by the step."""
PRECISIONS: dict[int, Precision] = {16: "float16", 8: "int8", 4: "int4"}
"""Precisions of graphs by the bits of a weight."""


def compress(
    model: SequenceModel,
    recipe: Recipe,
    *,
    histories: Sequence[np.ndarray],
    recover: Recover | None = None,
) -> tuple[SequenceModel, Precision]:
    """Returns the compressed model and the precision to export it in; `model` stays as it is.

    Content of items is summed into the item table first.

    Args:
        histories: real ones, to calibrate the steps on.
        recover: trains a model on, after the steps that ask for it.

    Raises:
        ValueError: a step asks for more than the model has, for recovery without `recover`, or for
            a kind of model that cannot be compressed.
    """
    if not isinstance(model.config, StudentConfig):
        raise ValueError(f"{type(model).__name__} cannot be served, so compress a student of it")
    model = without_content(model)
    if any(step.recover_epochs for step in recipe):
        _steps(model, recipe, histories, _no_recovery)  # what cannot be is refused before training
    return _steps(model, recipe, histories, recover)


def _no_recovery(model: SequenceModel, step: Step, bits: int | None) -> SequenceModel:
    if bits:
        round_weights(copy.deepcopy(model), bits)
    return model


def _steps(
    model: SequenceModel,
    recipe: Recipe,
    histories: Sequence[np.ndarray],
    recover: Recover | None,
) -> tuple[SequenceModel, Precision]:
    precision: Precision = "float32"
    bits = None
    for step in recipe:
        if isinstance(step, Quantize):
            precision = PRECISIONS[step.bits]
            bits = None if step.bits == 16 else step.bits
        model = apply(step, model, histories)
        if step.recover_epochs:
            if recover is None:
                raise ValueError(
                    f"{type(step).__name__} asks for recovery, but there is no trainer"
                )
            model = recover(model, step, bits)
    return model, precision


def apply(step: Step, model: SequenceModel, histories: Sequence[np.ndarray]) -> SequenceModel:
    """Returns a new model after one step; the same where the step is about the graph only.

    Raises:
        ValueError: the step asks for more than the model has.
    """
    if isinstance(step, Quantize):
        return model
    if type(step) in OF_ANY:
        return OF_ANY[type(step)](step, model, histories)
    if not isinstance(model, Transformer):
        raise ValueError(
            f"{type(step).__name__} is for transformers, not for {type(model).__name__}"
        )
    return OF_TRANSFORMERS[type(step)](step, model, histories)
