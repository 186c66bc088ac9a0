import os
import signal

import numpy as np
import pytest

from recsys.evaluate.on_ray import rank_on_ray
from recsys.evaluate.ranking import rank_targets

NUM_ITEMS = 30


def by_last_item():
    """Returns a scorer; made inside, so that workers need not import this file."""

    def score(histories, _times=None):
        lasts = [int(history[-1]) for history in histories]
        return np.stack([np.random.default_rng(i).normal(size=NUM_ITEMS + 1) for i in lasts])

    return score


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.usefixtures("ray_started")
@pytest.mark.parametrize("keep_seen", [False, True])
def test_workers_together_rank_as_one_process(walks, keep_seen):
    expected = rank_targets(by_last_item(), walks, "test", keep_seen=keep_seen)
    found = rank_on_ray(by_last_item, walks.path, "test", num_workers=2, keep_seen=keep_seen)
    assert_same(expected, found)


@pytest.mark.usefixtures("ray_started")
def test_a_worker_killed_in_the_middle_changes_nothing(walks, tmp_path):
    killed = tmp_path / "killed"
    make_plain = by_last_item

    def make():
        plain = make_plain()

        def score(histories, _times=None):
            if not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(histories)

        return score

    found = rank_on_ray(make, walks.path, "test", num_workers=2)
    assert killed.exists()
    assert_same(rank_targets(by_last_item(), walks, "test"), found)


@pytest.mark.usefixtures("ray_started")
def test_what_a_user_caused_comes_back_as_it_was(walks):
    def make():
        return lambda histories, _times=None: np.full((len(histories), NUM_ITEMS + 1), np.nan)

    with pytest.raises(ValueError, match=r"^a score is not finite") as error:
        rank_on_ray(make, walks.path, "test", num_workers=1)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("ray_started")
def test_more_workers_than_ray_has_cpus_do_not_wait_for_ever(walks):
    found = rank_on_ray(by_last_item, walks.path, "test", num_workers=100)
    assert_same(rank_targets(by_last_item(), walks, "test"), found)


@pytest.mark.usefixtures("ray_started")
def test_a_worker_that_cannot_start_is_one_line(walks):
    def make():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ValueError, match="workers that rank died") as error:
        rank_on_ray(make, walks.path, "test", num_workers=1)
    assert "\n" not in str(error.value)
