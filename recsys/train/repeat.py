"""A training step that a GPU repeats from one recording.

A small model's step is hundreds of operations of a few microseconds each, and telling the GPU of
one takes longer than that: it idles. A CUDA graph tells it of all at once
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from recsys.models.interface import SequenceModel
from recsys.train.objective import Objective, Repeatable, next_item

WARM_UP = 3  # steps that are told: libraries set themselves up in the first


def can_repeat(model: SequenceModel, objective: Objective, device: torch.device) -> bool:
    """Returns whether a device can repeat steps, and every step is known to be the same operations
    on tensors of the same shapes."""
    if device.type != "cuda" or getattr(model.config, "num_read", 0):  # texts of any length
        return False
    return objective is next_item or (isinstance(objective, Repeatable) and objective.repeats)


class Repeated:
    """A function whose operations on the GPU are recorded once and repeated.

    What it reads and writes besides its arguments stays where it is in memory; the random state is
    read anew each time.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device):
        self.function, self.device = function, device
        self.stream = torch.cuda.Stream(device)  # recordings are made beside the usual one
        self.inputs: list[Any] = []
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result = torch.empty(())

    def __call__(self, *arguments: Any) -> Tensor:
        """Returns what the function makes of tensors, and tuples of them, that come from the
        processor; the next call writes over it.

        Raises:
            ValueError: something is not as it was recorded: a shape, a type, or what is no tensor.
        """
        leaves, form = tree_flatten(arguments)
        if not self.inputs:
            self.inputs = [
                torch.empty_like(leaf, device=self.device) if isinstance(leaf, Tensor) else leaf
                for leaf in leaves
            ]
        for place, leaf in zip(self.inputs, leaves, strict=True):
            if _kind(place) != _kind(leaf):
                raise ValueError(f"a step that repeats had {_kind(place)}, now {_kind(leaf)}")
            if isinstance(leaf, Tensor):
                place.copy_(leaf.pin_memory(), non_blocking=True)
        self.calls += 1
        if self.calls <= WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                result = self.function(*tree_unflatten(self.inputs, form))
            torch.cuda.current_stream().wait_stream(self.stream)
            return result
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile: one writes checkpoints.
            mode = "thread_local"
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode=mode):
                self.result = self.function(*tree_unflatten(self.inputs, form))
        self.graph.replay()
        return self.result


def _kind(leaf: Any) -> Any:
    """Returns what must not change from call to call."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf
