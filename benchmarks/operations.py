"""Floating point operations of a training step, and how many a second this machine can do."""

import contextlib
import time
from collections.abc import Iterator

import torch

from recsys.models import TransformerConfig

SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
REPEATS = 12


def step_operations(
    model: TransformerConfig, *, num_rows: int, length: int, num_items_with_padding: int
) -> int:
    """Returns the floating point operations of the matrix products of one training step.

    Of a position in the forward pass, with width D, inner width I of the attention (heads times
    head width), feed-forward width F, row length L and V items, a product of (1, a) and (a, b)
    being 2 a b operations:

        each layer    8 D I   (queries, keys, values, output)
                    + 4 L I   (scores with all L positions of the row, and their mixture)
                    + 4 D F   (feed-forward)
        the softmax   2 D V

    The backward pass does each product twice more, by either operand: 3 times as much in all.
    Positions that padding or causality mask are computed, and so are counted. Low-rank maps and
    tables have other products and are not covered.
    """
    assert (model.linear_rank, model.item_rank) == (None, None)
    width, inner = model.width, model.num_heads * model.head_width
    layer = 8 * width * inner + 4 * length * inner + 4 * width * model.feed_forward_width
    position = model.num_layers * layer + 2 * width * num_items_with_padding
    return 3 * num_rows * length * position


def peak_operations_per_second(dtype: torch.dtype, num_threads: int, device: str = "cpu") -> float:
    """Returns the best rate of a product of two large square matrices, as training runs them."""
    with _threads_and_precision(num_threads):
        return max(_rate(size, dtype, device) for size in SIZES[device])


def _rate(size: int, dtype: torch.dtype, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = left @ right
    seconds = []
    for _ in range(REPEATS):
        wait()
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        wait()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


@contextlib.contextmanager
def _threads_and_precision(num_threads: int) -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
