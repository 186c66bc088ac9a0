"""Histories with times, as packed rows."""

import numpy as np
import torch

from recsys.models.interface import PackedRows


def times_of(history):
    """Times of a history and of its target: they depend on the items, to tell histories apart."""
    return np.cumsum([1000, *(100 * int(item) ** 2 for item in history)])


def pack(*histories):
    """Returns one packed row."""
    times = [times_of(history) for history in histories]
    columns = PackedRows(
        items_BL=[item for history in histories for item in history],
        positions_BL=[at for history in histories for at in range(len(history))],
        segments_BL=[i for i, history in enumerate(histories, 1) for _ in history],
        times_BL=[t for moments in times for t in moments[:-1]],
        next_times_BL=[t for moments in times for t in moments[1:]],
    )
    return PackedRows(*(torch.tensor([column]) for column in columns))
