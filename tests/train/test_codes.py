"""Codes that items have before training."""

from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import svds

from recsys.models import GRUConfig, TransformerConfig
from recsys.train.codes import codes_by_users
from recsys.train.config import TrainConfig
from recsys.train.fit import Task, fit, start_model


def test_items_of_the_same_users_have_codes_near_each_other(dataset):
    codes_VP = codes_by_users(dataset, 3)
    assert codes_VP.dtype == np.uint8
    assert codes_VP.shape == (dataset.num_items_with_padding, 3)
    assert not codes_VP[0].any()
    for codes_N in codes_VP[1:].T:  # as far apart as they can be
        assert np.diff(np.sort(codes_N.astype(int))).min() >= 256 // len(codes_N)
    # Users walk round a circle of items: neighbours are met by the same, opposite ones by few.
    names = dataset.item_ids.to_pylist()[1:]
    round_P = codes_VP[1:].astype(float)[np.argsort([int(name[1:]) for name in names])]
    near, opposite = (
        np.abs(round_P - np.roll(round_P, shift, axis=0)).sum(axis=1).mean()
        for shift in (1, len(names) // 2)
    )
    assert near < 0.6 * opposite


def test_the_signs_of_singular_vectors_do_not_matter(dataset, monkeypatch):
    expected_VP = codes_by_users(dataset, 3)

    def other_sign(*args, **settings):
        left, singular, right = svds(*args, **settings)
        return -left, singular, -right

    monkeypatch.setattr("recsys.train.codes.svds", other_sign)
    np.testing.assert_array_equal(codes_by_users(dataset, 3), expected_VP)


def test_more_codes_than_the_log_tells_apart_stay_as_they_were(dataset):
    assert codes_by_users(dataset, dataset.num_items_with_padding) is None


def test_a_model_starts_with_them_and_keeps_them(dataset, tmp_path):
    expected_VP = torch.from_numpy(codes_by_users(dataset, 4))
    train = TrainConfig(epochs=1, batch_rows=4)
    make = partial(Task, dataset=dataset.path, train=train)
    for config in (
        TransformerConfig(width=8, num_heads=1, head_width=8, max_length=10, item_codes=4),
        GRUConfig(width=8, max_length=10, item_codes=4),
    ):
        assert torch.equal(
            start_model(make(model=config), dataset).item_embedding.codes_VP, expected_VP
        )
        directory = tmp_path / type(config).__name__
        directory.mkdir()
        trained = fit(make(model=config), directory).model
        assert torch.equal(trained.item_embedding.codes_VP, expected_VP)
