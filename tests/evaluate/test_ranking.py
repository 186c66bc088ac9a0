import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluate import ranking
from recsys.evaluate.ranking import join, rank_targets


def constant(scores_V):
    """Returns a scorer that gives every history the same scores."""
    return lambda histories, _times=None: np.tile(
        np.array(scores_V, np.float32), (len(histories), 1)
    )


BY_INDEX = constant([99, 1, 2, 3, 4, 5])  # the padding item scores best, and must not count


def test_ranks_by_hand(make_dataset):
    # Items are ranked 5 4 3 2 1; the last item of each user is the target.
    dataset = make_dataset([[1, 2, 3], [5, 4, 1], [1, 2], [5, 1, 4]])
    ranking = rank_targets(BY_INDEX, dataset, "test")
    assert ranking.users_U.tolist() == [0, 1, 3]
    # User 0: 5 and 4 stand above 3. User 1: 5 and 4 are seen; 3 and 2 stand above 1.
    # User 3: 5 is seen, so nothing stands above 4.
    assert ranking.ranks_U.tolist() == [2, 2, 0]
    assert ranking.num_repeat_targets == 0


def test_validation_has_shorter_histories(make_dataset):
    ranking = rank_targets(BY_INDEX, make_dataset([[5, 2, 3]]), "validation")
    assert ranking.ranks_U.tolist() == [2]  # 4 and 3 above 2; the test target 3 is not seen yet


def test_scorer_is_given_the_history_before_the_target_and_the_time_of_it(make_dataset):
    asked, moments = [], []

    def score(histories, times):
        asked.extend(history.tolist() for history in histories)
        moments.extend(time.tolist() for time in times)
        return BY_INDEX(histories)

    rank_targets(score, make_dataset([[1, 2, 3, 4]]), "test")
    assert asked == [[1, 2, 3]]
    assert moments == [[0, 1, 2, 3]]


def test_lists_hold_unseen_items_best_first_and_zeros_where_there_are_too_few(make_dataset):
    ranking = rank_targets(BY_INDEX, make_dataset([[1, 4, 3]]), "test")
    assert ranking.top_UK.tolist() == [[5, 3, 2, 0, 0, 0, 0, 0, 0, 0]]


def test_ties_count_against_the_target(make_dataset):
    ranking = rank_targets(constant([0] * 6), make_dataset([[1, 2, 3]]), "test")
    assert ranking.ranks_U.tolist() == [2]  # 4 and 5 tie with 3; 1 and 2 are seen


def test_a_target_met_before_is_counted_and_left_out(make_dataset):
    dataset = make_dataset([[1, 2, 1], [1, 2, 3]])
    ranking = rank_targets(BY_INDEX, dataset, "test")
    assert ranking.users_U.tolist() == [1]
    assert ranking.num_repeat_targets == 1


def test_keep_seen_ranks_everybody_among_all_items(make_dataset):
    dataset = make_dataset([[1, 2, 1], [5, 4, 3]])
    ranking = rank_targets(BY_INDEX, dataset, "test", keep_seen=True)
    assert ranking.ranks_U.tolist() == [4, 2]
    assert ranking.num_repeat_targets == 0


def test_no_targets_make_an_empty_ranking(make_dataset):
    ranking = rank_targets(BY_INDEX, make_dataset([[1, 2]]), "test")
    assert len(ranking.users_U) == 0
    assert ranking.top_UK.shape == (0, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(make_dataset, value):
    with pytest.raises(ValueError, match="not finite"):
        rank_targets(constant([0, 1, value, 3, 4, 5]), make_dataset([[1, 2, 3]]), "test")


def test_scores_of_another_catalogue_are_refused(make_dataset):
    with pytest.raises(ValueError, match="3 items and the dataset has 5"):
        rank_targets(constant([0, 1, 2, 3]), make_dataset([[1, 2, 3]]), "test")


def by_noise(histories, _times=None):
    """Returns scores that depend on the history alone, not on its batch."""
    seeds = [int(history.sum()) * 31 + len(history) for history in histories]
    return np.stack([np.random.default_rng(s).normal(size=31) for s in seeds])


@pytest.mark.parametrize("keep_seen", [False, True])
def test_ranks_are_those_of_sorting_everything(walks, keep_seen):
    ranking = rank_targets(by_noise, walks, "test", keep_seen=keep_seen)
    for user, rank, top_K in zip(ranking.users_U, ranking.ranks_U, ranking.top_UK, strict=True):
        *history, target = walks.history(user).tolist()
        scores_V = by_noise([np.array(history)])[0]
        allowed = [i for i in range(1, 31) if keep_seen or i not in history]
        best = sorted(allowed, key=lambda item: -scores_V[item])
        assert best.index(target) == rank
        assert best[:10] == top_K.tolist()[: len(best)]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_do_not_matter(walks, batch_size):
    one, other = (rank_targets(by_noise, walks, "test", batch_size=b) for b in (3, batch_size))
    np.testing.assert_array_equal(one.users_U, other.users_U)
    np.testing.assert_array_equal(one.ranks_U, other.ranks_U)
    np.testing.assert_array_equal(one.top_UK, other.top_UK)


def test_no_batch_is_larger_than_asked(walks):
    sizes = []

    def score(histories, _times=None):
        sizes.append(len(histories))
        return by_noise(histories)

    rank_targets(score, walks, "test", batch_size=7)
    assert max(sizes) == 7
    assert sum(sizes) == 40


@pytest.mark.parametrize("num_parts", [1, 3, 50])
def test_parts_join_to_the_whole(walks, num_parts):
    whole = rank_targets(by_noise, walks, "test")
    parts = [rank_targets(by_noise, walks, "test", part=(i, num_parts)) for i in range(num_parts)]
    joined = join(parts)
    np.testing.assert_array_equal(whole.users_U, joined.users_U)
    np.testing.assert_array_equal(whole.ranks_U, joined.ranks_U)
    np.testing.assert_array_equal(whole.top_UK, joined.top_UK)
    assert joined.num_repeat_targets == whole.num_repeat_targets


def test_two_scorers_are_measured_on_the_same_users_in_the_same_order(walks):
    one, other = (rank_targets(score, walks, "test") for score in (by_noise, constant(range(31))))
    np.testing.assert_array_equal(one.users_U, other.users_U)


def test_a_higher_score_of_the_target_never_worsens_its_rank(make_dataset):
    dataset = make_dataset([[1, 2, 3]])

    @given(scores_V=st.lists(st.integers(0, 3), min_size=6, max_size=6))
    def check(scores_V):
        better_V = [score + (item == 3) for item, score in enumerate(scores_V)]
        before, after = (rank_targets(constant(s), dataset, "test") for s in (scores_V, better_V))
        assert after.ranks_U[0] <= before.ranks_U[0]

    check()


@pytest.mark.parametrize("num_items", [3, 10, 300, 11 * 256, 12 * 256 + 77])
def test_the_best_are_found_block_by_block(num_items):
    generator = np.random.default_rng(num_items)
    scores_BV = generator.standard_normal((7, num_items)).astype(np.float32)
    scores_BV[0, :] = -np.inf
    scores_BV[0, -2:] = [1, 2]
    scores_BV[1] = np.arange(num_items)  # all in the last block, and what is left over
    expected_BK = np.argsort(-scores_BV, axis=1, kind="stable")[:, :10]
    expected_BK[0, 2:] = 0
    found_BK = ranking._best(scores_BV)
    np.testing.assert_array_equal(found_BK[:, : expected_BK.shape[1]], expected_BK)
