"""Sharded training: each worker holds its rows of every weight, gradient and moment of AdamW.

Blocks are gathered one at a time while they compute, by FSDP2 (torch.distributed.fsdp). The item
table is never gathered: a vector is sent by the worker that owns its row, and the softmax over the
catalogue joins the workers' shares of its normaliser (Megatron-LM, arXiv 1909.08053).

Tensor names: S own rows of the table, M positions of all workers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_map

from recsys.data.batches import pad_histories, pad_times
from recsys.data.sequences import Dataset
from recsys.evaluate.ranking import Ranking, Split, rank_targets
from recsys.losses import CHUNK, LEFT_OUT, PADDING, SoftLabels
from recsys.models.interface import SequenceModel
from recsys.models.item_table import DenseItemTable


def shard(model: SequenceModel, device: torch.device) -> DeviceMesh:
    """Splits the weights of `model` in place over all workers, each part on its worker's device.

    Every worker must hold the same weights before.

    Raises:
        ValueError: the item table cannot be split.
    """
    assert isinstance(model, nn.Module)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    table = model.get_submodule("item_embedding")
    if not isinstance(table, DenseItemTable):
        raise ValueError(
            "sharded training needs a dense item table: leave item_rank, item_codes and content out"
        )
    sharded = ShardedItemTable(table, mesh, device)
    model.item_embedding = sharded
    for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    # What is not in a block, too, is known by its shards between a validation and the next step.
    fully_shard(model, mesh=mesh, ignored_params={sharded.weight}, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are sums.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for name in ("encode", "last_state"):
        register_fsdp_forward_method(model, name)
    return mesh


def split(state: Any, mesh: DeviceMesh) -> Any:
    """Returns a state of whole tensors with this worker's rows of each."""
    device = torch.device(mesh.device_type)
    return tree_map(
        lambda leaf: _own_rows(leaf, mesh, device) if _has_rows(leaf) else leaf,
        state,
    )


def join(state: Any) -> Any:
    """Returns a state with its sharded tensors whole, in the memory of the first worker's host.

    Other workers get empty tensors. A state without sharded tensors is returned as it is.
    """
    return tree_map(lambda leaf: _join(leaf) if isinstance(leaf, DTensor) else leaf, state)


def rank_sharded(
    model: SequenceModel, dataset: Dataset, split: Split, part: tuple[int, int]
) -> Ranking:
    """Returns what `rank_targets` returns, scoring in lockstep with the other workers' parts."""
    score = _Scorer(model)
    ranking = rank_targets(score, dataset, split, part=part)
    score.finish()
    return ranking


class ShardedItemTable(nn.Module):
    """What `DenseItemTable` is, of which this worker holds consecutive rows."""

    def __init__(self, table: DenseItemTable, mesh: DeviceMesh, device: torch.device):
        super().__init__()
        if mesh.size() * (mesh.size() - 1) >= len(table.weight):
            raise ValueError(
                f"{len(table.weight)} items cannot be sharded over {mesh.size()} workers: "
                "each needs rows of its own"
            )
        self.weight = nn.Parameter(_own_rows(table.weight.detach(), mesh, device))

    def forward(self, items_BL: Tensor) -> Tensor:
        return self.table()[items_BL]

    def table(self) -> "Rows":
        """Returns table_VD as its rows here."""
        return Rows(self.weight)


class Rows:
    """The rows here of a table that workers share; every worker asks the same things in turn."""

    def __init__(self, weight: Tensor):
        assert isinstance(weight, DTensor)
        self.rows_SD, self.num_rows = weight.to_local(), len(weight)
        self.group = weight.device_mesh.get_group()
        self.first = self.group.rank() * _rows_each(len(weight), self.group.size())

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, items: Tensor) -> Tensor:
        """Returns the vectors of `items`, of any shape and number."""
        return _LookUp.apply(self.rows_SD, items, self)

    def cross_entropy(
        self, states_ND: Tensor, labels: Sequence[SoftLabels], left_out_NM: Tensor | None = None
    ) -> Tensor:
        """Returns this worker's share of the loss that `recsys.losses.cross_entropy` defines.

        Shares add up to the loss of all workers' positions. Each worker must scale its share alike:
        gradients of the table are of all positions.
        """
        return _CrossEntropy.apply(states_ND, self.rows_SD, labels, left_out_NM, self)

    def scores(self, states_BD: Tensor) -> Tensor:
        """Returns scores_BV; every worker has as many states."""
        num_workers, size = self.group.size(), len(states_BD)
        width = _rows_each(self.num_rows, num_workers)
        own = states_BD.new_zeros(num_workers * size, width)
        own[:, : len(self.rows_SD)] = self.gather(states_BD, size) @ self.rows_SD.T
        scores = torch.empty_like(own)
        dist.all_to_all_single(scores, own, group=self.group)
        scores = scores.view(num_workers, size, width).transpose(0, 1)
        return scores.flatten(1)[:, : self.num_rows]

    def most(self, count: int) -> int:
        """Returns the largest of the workers' counts."""
        counts = torch.tensor(count, device=self.rows_SD.device)
        dist.all_reduce(counts, dist.ReduceOp.MAX, group=self.group)
        return int(counts)

    def gather(self, part: Tensor, size: int) -> Tensor:
        """Returns the parts of all workers in turn, each filled up with zeros to `size` rows."""
        filled = part.new_zeros(size, *part.shape[1:])
        filled[: len(part)] = part
        parts = filled.new_empty(self.group.size() * size, *part.shape[1:])
        dist.all_gather_single(parts, filled, group=self.group)
        return parts

    def scatter_sum(self, parts: Tensor) -> Tensor:
        """Returns the sum over the workers of this worker's part: the reverse of `gather`."""
        own = parts.new_empty(len(parts) // self.group.size(), *parts.shape[1:])
        dist.reduce_scatter_single(own, parts.contiguous(), group=self.group)
        return own

    def locate(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the row here of each item, and which items have one; others get some row."""
        local = items - self.first
        mine = (local >= 0) & (local < len(self.rows_SD))
        return local.clamp(0, len(self.rows_SD) - 1), mine


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_SD: Tensor, items: Tensor, table: Rows):
        items_N = items.flatten()
        items_M = table.gather(items_N, table.most(len(items_N)))
        local_M, mine_M = table.locate(items_M)
        ctx.save_for_backward(local_M, mine_M & (items_M != PADDING))
        ctx.table = table
        found_MD = rows_SD[local_M].masked_fill_(~mine_M[:, None], 0)
        found_ND = table.scatter_sum(found_MD)[: len(items_N)]
        return found_ND.view(*items.shape, found_ND.shape[1])  # there may be none

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        local_M, learns_M = ctx.saved_tensors
        table, gradient_ND = ctx.table, gradients[0].flatten(0, -2)
        gradient_MD = table.gather(gradient_ND, len(local_M) // table.group.size())
        gradient_MD.masked_fill_(~learns_M[:, None], 0)
        return torch.zeros_like(table.rows_SD).index_add_(0, local_M, gradient_MD), None, None


class _CrossEntropy(torch.autograd.Function):
    """As in `recsys.losses`; the scores of a chunk of all workers' states stand by own rows."""

    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        rows_SD: Tensor,
        labels: Sequence[SoftLabels],
        left_out_NM: Tensor | None,
        table: Rows,
    ):
        device = states_ND.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else states_ND.dtype
        rounded_SD = rows_SD.to(dtype)
        total = states_ND.new_zeros(())
        states_gradient_ND, rows_gradient_SD = map(torch.zeros_like, (states_ND, rows_SD))
        for at in range(0, table.most(len(states_ND)), CHUNK):
            part = slice(at, at + CHUNK)
            states_MD = table.gather(states_ND[part], CHUNK).to(dtype)
            scores_MS = (states_MD @ rounded_SD.T).float()
            gradient_MS = torch.zeros_like(scores_MS)
            chunk = [
                SoftLabels(table.gather(i[part], CHUNK), table.gather(w[part], CHUNK), temperature)
                for i, w, temperature in labels
            ]
            if left_out_NM is not None:
                _leave_out(scores_MS, table.gather(left_out_NM[part], CHUNK), chunk, table)
            for label in chunk:
                total += _add_gradient(gradient_MS, scores_MS, label, table)
            gradient_MS = gradient_MS.to(dtype)
            gradient_CD = table.scatter_sum((gradient_MS @ rounded_SD).float())
            states_gradient_ND[part] = gradient_CD[: len(states_ND[part])]
            rows_gradient_SD += gradient_MS.T @ states_MD
        ctx.save_for_backward(states_gradient_ND, rows_gradient_SD)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        states_gradient_ND, rows_gradient_SD = ctx.saved_tensors
        states_gradient_ND = states_gradient_ND * gradients[0]
        return states_gradient_ND, rows_gradient_SD * gradients[0], None, None, None


def _leave_out(
    scores_MS: Tensor, items_ML: Tensor, labels: Sequence[SoftLabels], table: Rows
) -> None:
    """Takes items out of the softmax, in place, as `recsys.losses.leave_out` does."""
    items_MK = torch.cat([label.items_NK for label in labels], dim=1)
    local_MK, mine_MK = table.locate(items_MK)
    kept_MK = scores_MS.gather(1, local_MK)
    local_ML, mine_ML = table.locate(items_ML)
    scores_MS[mine_ML.nonzero()[:, 0], local_ML[mine_ML]] = LEFT_OUT
    scores_MS[mine_MK.nonzero()[:, 0], local_MK[mine_MK]] = kept_MK[mine_MK]


def _add_gradient(
    gradient_MS: Tensor, scores_MS: Tensor, labels: SoftLabels, table: Rows
) -> Tensor:
    """Adds the derivative by the scores to `gradient_MS`; returns this worker's share of the loss.

    The share has the log-normalisers of own positions and the scores of own rows.
    """
    items_MK, weights_MK, temperature = labels
    scores_MS = scores_MS / temperature
    local_MK, mine_MK = table.locate(items_MK)
    weights_M1 = weights_MK.sum(dim=1, keepdim=True)
    weights_MK = weights_MK * mine_MK
    shares_1M = scores_MS.logsumexp(dim=1)[None]
    normalizer_M = table.gather(shares_1M, 1).logsumexp(dim=0)
    own = slice(table.group.rank() * CHUNK, (table.group.rank() + 1) * CHUNK)
    loss = weights_M1[own, 0] @ normalizer_M[own]
    loss -= (weights_MK * scores_MS.gather(1, local_MK)).sum()
    derivative_MS = (scores_MS - normalizer_M[:, None]).exp_().mul_(weights_M1)
    derivative_MS.scatter_add_(1, local_MK, -weights_MK)
    gradient_MS.add_(derivative_MS, alpha=1 / temperature)
    return loss


class _Scorer:
    """Scores histories while the other workers score theirs."""

    def __init__(self, model: SequenceModel):
        self.model = model.eval()

    def __call__(self, histories: Sequence[np.ndarray], times: Sequence[np.ndarray]) -> np.ndarray:
        return self._score(histories, times)[: len(histories)]

    def finish(self) -> None:
        """Takes part until every worker has finished."""
        while len(self._score([], [])):
            pass

    @torch.no_grad()
    def _score(self, histories: Sequence[np.ndarray], times: Sequence[np.ndarray]) -> np.ndarray:
        """Returns scores of `histories` and of empty ones, as many as the longest list has."""
        table: Any = self.model.item_table()
        size = table.most(len(histories))
        if size == 0:
            return np.empty((0, table.num_rows))
        lacking, max_length = size - len(histories), self.model.config.max_length
        filled = [*histories, *[np.empty(0, np.int64)] * lacking]
        moments = [*times, *[np.zeros(1, np.int64)] * lacking]
        arrays = (*pad_histories(filled, max_length), pad_times(moments, max_length))
        inputs = (torch.from_numpy(array).to(table.rows_SD.device) for array in arrays)
        return table.scores(self.model.last_state(*inputs)).cpu().numpy()


def _rows_each(num_rows: int, num_workers: int) -> int:
    """Returns the rows of every worker but the last, which has what is left."""
    return -(-num_rows // num_workers)


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _own_rows(whole: Tensor, mesh: DeviceMesh, device: torch.device) -> DTensor:
    each = _rows_each(len(whole), mesh.size())
    own = whole[each * mesh.get_local_rank() :][:each].to(device, copy=True)
    return DTensor.from_local(
        own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _join(tensor: DTensor) -> Tensor:
    group, own = tensor.device_mesh.get_group(), tensor.to_local().detach().contiguous()
    if group.rank() > 0:
        dist.send(own, group=group, group_dst=0)
        return own.new_empty(0, device="cpu")
    each = _rows_each(len(tensor), group.size())
    parts = [own.cpu()]
    for rank in range(1, group.size()):
        part = own.new_empty(max(0, min(each, len(tensor) - rank * each)), *tensor.shape[1:])
        dist.recv(part, group=group, group_src=rank)
        parts.append(part.cpu())
    return torch.cat(parts)
