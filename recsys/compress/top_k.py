"""The best items of a row of scores, in a graph."""

import numpy as np

from recsys.compress.tables import Graph

GROUP = 256  # scores whose maximum is found first
COLUMNS_TO_GROUP = 1 << 15  # where that begins to save time, for lists of some dozens


def whole_groups(graph: Graph, scores_BV: str, num_columns: int) -> str:
    """Returns the scores with -inf for as many columns as `best` lacks."""
    if num_columns < COLUMNS_TO_GROUP:
        return scores_BV
    missing = graph.constant([0, 0, 0, -num_columns % GROUP], np.int64)
    return graph.op("Pad", scores_BV, missing, graph.constant(-np.inf, np.float32))


def best(graph: Graph, scores_BV: str, k: str, num_columns: int) -> list[str]:
    """Returns scores and columns of the k best of what `whole_groups` returns, best first.

    The k best, or others as good, are in the k groups with the highest maxima. TopK asks its heap
    about every score, while maxima take vector instructions. Where a score is -inf, the column is
    any.
    """
    if num_columns < COLUMNS_TO_GROUP:
        return graph.split("TopK", scores_BV, k, count=2)
    num_groups = -(-num_columns // GROUP)
    length = graph.constant([GROUP], np.int64)
    shape = graph.constant([0, num_groups, GROUP], np.int64)
    scores_BGN = graph.op("Reshape", scores_BV, shape)
    maxima_BG = graph.op("ReduceMax", scores_BGN, graph.constant([2], np.int64), keepdims=0)
    k_groups = graph.op("Min", k, graph.constant([num_groups], np.int64))
    _, groups_BK = graph.split("TopK", maxima_BG, k_groups, count=2)
    groups_BK1 = graph.op("Unsqueeze", groups_BK, graph.constant([2], np.int64))
    candidates_BKN = graph.op("GatherND", scores_BGN, groups_BK1, batch_dims=1)
    candidates_BM = graph.op("Flatten", candidates_BKN, axis=1)
    best_BK, at_BK = graph.split("TopK", candidates_BM, k, count=2)
    group_BK = graph.op("GatherElements", groups_BK, graph.op("Div", at_BK, length), axis=1)
    start_BK = graph.op("Mul", group_BK, length)
    columns_BK = graph.op("Add", start_BK, graph.op("Mod", at_BK, length))
    last = graph.constant([num_columns - 1], np.int64)  # else -inf may be that of `whole_groups`
    return [best_BK, graph.op("Min", columns_BK, last)]


def without_seen(graph: Graph, scores_BV: str) -> str:
    """Returns the scores with -inf at the items of the history, if exclude_seen says so."""
    seen_BL = graph.op("GatherElements", scores_BV, "history_BL", axis=1)
    infinite = graph.constant(-np.inf, np.float32)
    seen_BL = graph.op("Where", "exclude_seen", infinite, seen_BL)
    return graph.op("ScatterElements", scores_BV, "history_BL", seen_BL, axis=1)
