"""Codes of items from who has met them, for item tables of codes that learn from scratch."""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from recsys.data.sequences import Dataset
from recsys.models.item_table import NUM_CENTROIDS

DECIMALS = 6  # beyond which processors may differ
SMALLEST = 1e-6  # of the largest singular value: of less, the vectors are anything


def codes_by_users(dataset: Dataset, num_codes: int) -> np.ndarray | None:
    """Returns codes_VP of 8 bits that items share with items which the same users have met.

    Each part is one of the leading right singular vectors of the matrix of users and the items of
    their training histories, cut into 256 ranges of as many items (RecJPQ's truncated SVD, Petrov
    and Macdonald, arXiv 2312.06165, section 4.2; ties go by the index, not by noise). None if the
    log does not have so many.
    """
    trained = [dataset.history(u)[:n] for u, n in enumerate(dataset.train_length_U.tolist())]
    users_N = np.repeat(np.arange(len(trained)), list(map(len, trained)))
    items_N = np.concatenate([np.empty(0, np.int32), *trained])
    shape = (len(trained), dataset.num_items_with_padding)
    if num_codes >= min(shape) or not len(items_N):
        return None
    met_UV = csr_array((np.ones(len(items_N)), (users_N, items_N)), shape=shape)
    met_UV.data[:] = 1
    _, singular_P, vectors_PV = map(np.asarray, svds(met_UV, k=num_codes, v0=np.ones(min(shape))))
    if singular_P.min() <= SMALLEST * singular_P.max():
        return None
    # Of the two signs that a vector may have, the one that makes its largest entry positive.
    largest_P1 = np.abs(vectors_PV).argmax(axis=1)[:, None]
    vectors_PV = vectors_PV / np.take_along_axis(vectors_PV, largest_P1, axis=1)
    vectors_PV = vectors_PV.round(DECIMALS)
    ranks_PV = vectors_PV[:, 1:].argsort(axis=1, kind="stable").argsort(axis=1)
    codes_PV = ranks_PV * NUM_CENTROIDS // max(shape[1] - 1, 1)
    return np.pad(codes_PV, ((0, 0), (1, 0))).T.astype(np.uint8)
