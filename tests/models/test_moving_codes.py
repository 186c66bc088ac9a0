"""Codes that move in training: what is used, what learns, and what is left of it."""

import copy

import pytest
import torch

from recsys.models import TransformerConfig, build
from recsys.models.item_table import CodebookItemTable
from recsys.models.moving_codes import fix_codes, move_codes, nearest

CONFIG = TransformerConfig(width=8, num_layers=1, num_heads=1, max_length=10, item_codes=4)
NUM_ROWS = 401


@pytest.fixture
def fixed():
    torch.manual_seed(0)
    return build(CONFIG, NUM_ROWS)


@pytest.fixture
def moving(fixed):
    model = copy.deepcopy(fixed)
    move_codes(model)
    return model.train()


def test_what_is_used_is_what_the_codes_stand_for(fixed, moving):
    assert torch.equal(moving.item_table(), fixed.item_table())
    items_BL = torch.tensor([[0, 3, 400], [0, 0, 9]])
    assert torch.equal(moving.item_vectors(items_BL), fixed.item_vectors(items_BL))
    with torch.no_grad():
        moving.item_embedding.rows_VD.add_(0.05 * torch.randn(NUM_ROWS, 8))
    moving.train()
    table = moving.item_embedding
    for part, rows_NS in enumerate(table.rows_VD[1:].chunk(4, dim=1)):
        distances_NC = torch.cdist(rows_NS, table.coded.centroids_PCS[part])
        nearest_N = distances_NC.argmin(dim=1).to(torch.uint8)
        assert torch.equal(nearest_N, table.coded.codes_VP[1:, part])
    assert not torch.equal(moving.item_table(), fixed.item_table())
    assert not moving.item_table()[0].any()


def test_gradients_pass_to_vectors_as_before_and_to_rows_as_if_they_were_used(fixed, moving):
    wanted_VD = torch.randn(NUM_ROWS, 8)
    table_VD = fixed.item_table()
    table_VD.retain_grad()
    (table_VD - wanted_VD).square().sum().backward()
    (moving.item_table() - wanted_VD).square().sum().backward()
    vectors, wanted = moving.item_embedding.coded.centroids_PCS, fixed.item_embedding.centroids_PCS
    torch.testing.assert_close(vectors.grad, wanted.grad)
    rows = moving.item_embedding.rows_VD
    torch.testing.assert_close(rows.grad[1:], table_VD.grad[1:])
    assert not rows.grad[0].any()


def test_a_table_is_learnt_that_the_first_codes_cannot_stand_for(fixed, moving):
    wanted_VD = torch.randn(NUM_ROWS, 8)
    errors = []
    for model in (fixed, moving):
        optimizer = torch.optim.Adam(model.item_embedding.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            model.train()
            error = (model.item_table() - wanted_VD)[1:].square().mean()
            error.backward()
            optimizer.step()
        errors.append(error.item())
    assert errors[1] < 0.5 * errors[0]


def test_afterwards_the_model_is_one_of_codes_that_stay(fixed, moving):
    with torch.no_grad():
        moving.item_embedding.rows_VD.add_(0.05 * torch.randn(NUM_ROWS, 8))
    moving.eval()
    table_VD = moving.item_table()
    fix_codes(moving)
    assert type(moving.item_embedding) is CodebookItemTable
    assert list(moving.state_dict()) == list(fixed.state_dict())
    assert torch.equal(moving.item_table(), table_VD)


def test_codes_are_found_once_a_measurement(moving):
    codes_VP = moving.item_embedding.coded.codes_VP
    moving.eval()
    found_VP = codes_VP.clone()
    codes_VP.zero_()
    moving.eval()  # as a scorer says of every batch of users
    assert not codes_VP.any()
    moving.train()
    assert torch.equal(codes_VP[1:], found_VP[1:])


def test_a_model_without_codes_is_left_as_it_is():
    model = build(TransformerConfig(width=8, num_layers=1, num_heads=1), NUM_ROWS)
    table = model.item_embedding
    move_codes(model)
    fix_codes(model)
    assert model.item_embedding is table


def test_the_nearest_of_many_rows_is_that_of_each_alone():
    torch.manual_seed(0)
    # Doubles: of 40 thousand rows one may lie as near to two, for floats.
    rows_NS, centroids_CS = torch.randn(40_000, 2).double(), torch.randn(7, 2).double()
    assert torch.equal(nearest(rows_NS, centroids_CS), torch.cdist(rows_NS, centroids_CS).argmin(1))
