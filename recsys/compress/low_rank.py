"""Low-rank factors of linear maps and of the item table, by truncated SVD."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.compress.calibration import calibrate, linear_maps
from recsys.compress.prune import Model, check_at_most, dense_weight, rebuilt
from recsys.models.transformer import Transformer

SMALLEST_VARIANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class FactorizeLinears:
    """Replaces every linear map of the blocks by two of lower rank."""

    rank: int
    """Rank of every map."""
    recover_epochs: int = 0
    """Epochs of training after the step."""


@dataclass(frozen=True, kw_only=True)
class FactorizeItems:
    """Replaces the item table by a code for each item and a basis they share."""

    rank: int
    """Length of an item's code."""
    recover_epochs: int = 0
    """Epochs of training after the step."""


def factorize_linears(
    step: FactorizeLinears, model: Transformer, histories: Sequence[np.ndarray]
) -> Transformer:
    """Returns the model with linear maps of rank `step.rank`.

    The factors are the best for the outputs on the calibration histories, not for the weights (Yuan
    et al., ASVD, arXiv 2312.05821; Wang et al., SVD-LLM, arXiv 2403.07378).

    Raises:
        ValueError: the rank is above that of the smallest map.
    """
    state = dict(model.state_dict())
    names = [name for name, _ in linear_maps(model)]
    weights = {name: dense_weight(state, name) for name in names}
    full_rank = min(min(weight.shape) for weight in weights.values())
    check_at_most("FactorizeLinears.rank", step.rank, full_rank, "ranks in its smallest linear map")
    moments = calibrate(model, histories).moments
    for name, weight_OI in weights.items():
        up_OR, down_RI = factors(weight_OI, moments[name], step.rank)
        for part in ("", ".up", ".down"):
            state.pop(f"{name}{part}.weight", None)
        state[f"{name}.up.weight"], state[f"{name}.down.weight"] = up_OR, down_RI
    return rebuilt(model, dataclasses.replace(model.config, linear_rank=step.rank), state)


def factorize_items(step: FactorizeItems, model: Model, histories: Sequence[np.ndarray]) -> Model:
    """Returns the model with an item table of rank `step.rank`.

    The basis is the leading right singular vectors of the table, the codes are the projections on
    it.

    Raises:
        ValueError: the rank is above the table's.
    """
    table_VD = model.item_table().detach()
    check_at_most("FactorizeItems.rank", step.rank, min(table_VD.shape), "ranks in its item table")
    # The table is tall: its right singular vectors come cheaper from the small D x D product.
    product_DD = table_VD.double().T @ table_VD.double()
    basis_RD = torch.linalg.eigh(product_DD).eigenvectors.T.flip(0)[: step.rank]
    state = {n: w for n, w in model.state_dict().items() if not n.startswith("item_embedding.")}
    state["item_embedding.codes_VR"] = (table_VD.double() @ basis_RD.T).float()
    state["item_embedding.basis_RD"] = basis_RD.float()
    config = dataclasses.replace(model.config, item_rank=step.rank, item_codes=None)
    return rebuilt(model, config, state)


def factors(weight_OI: Tensor, moment_II: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns up_OR and down_RI whose product is nearest to weight_OI on inputs of these moments.

    With moment = S S^T, the error E|(W - up down) x|^2 is |(W - up down) S|^2 in Frobenius' norm,
    which the truncated SVD of W S makes least.
    """
    variances, directions = torch.linalg.eigh(moment_II.double())
    # Directions that no input takes keep a little weight: their coefficients must stay finite.
    scales = (variances + SMALLEST_VARIANCE * variances.max() + 1e-12).sqrt()
    whitened = weight_OI.double() @ (directions * scales)
    left, singular, right = torch.linalg.svd(whitened, full_matrices=False)
    root = singular[:rank].sqrt()
    up_OR = left[:, :rank] * root
    down_RI = root[:, None] * right[:rank] / scales @ directions.T
    return up_OR.to(weight_OI.dtype), down_RI.to(weight_OI.dtype)
