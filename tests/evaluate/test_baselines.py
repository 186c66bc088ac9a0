import numpy as np

from recsys.evaluate.baselines import last_item_markov, popularity

EMPTY = np.empty(0, np.int32)


def test_popularity_counts_training_prefixes_only(make_dataset):
    # Training: [1, 2], [1], [3, 4]; what follows is for validation and test.
    dataset = make_dataset([[1, 2, 5, 5], [1, 5, 5], [3, 4]])
    scores_BV = popularity(dataset)([np.array([3]), EMPTY])
    assert scores_BV.tolist() == [[0, 2, 1, 1, 1, 0]] * 2


def test_markov_counts_what_followed_the_last_item_in_training(make_dataset):
    # Training: [1, 2, 1, 2], [2, 3], [1, 3]; 2 follows 1 twice, 3 once.
    dataset = make_dataset([[1, 2, 1, 2, 5, 5], [2, 3, 4, 4], [1, 3]])
    scores_BV = last_item_markov(dataset)([np.array([3, 1]), np.array([2])])
    assert np.floor(scores_BV).tolist() == [[0, 0, 2, 1, 0, 0], [0, 1, 0, 1, 0, 0]]


def test_markov_settles_ties_by_popularity(make_dataset):
    dataset = make_dataset([[1, 2, 1, 3], [2, 2]])
    scores_V = last_item_markov(dataset)([np.array([1])])[0]
    assert np.argsort(-scores_V)[:2].tolist() == [2, 1]


def test_markov_backs_off_to_popularity(make_dataset):
    dataset = make_dataset([[1, 2, 5, 5], [1, 5, 5], [3, 4]])
    scores_BV = last_item_markov(dataset)([EMPTY, np.array([5])])
    expected_V = popularity(dataset)([EMPTY])[0]
    for scores_V in scores_BV:
        assert np.argsort(-scores_V, kind="stable").tolist() == [1, 2, 3, 4, 0, 5]
        np.testing.assert_array_equal(scores_V > 0, expected_V > 0)


def test_baselines_of_a_log_without_training_know_nothing(make_dataset):
    dataset = make_dataset([])
    for make in (popularity, last_item_markov):
        assert make(dataset)([EMPTY, np.array([2])]).tolist() == [[0.0] * 6] * 2


def test_popularity_of_a_prepared_dataset_leaves_out_its_targets(dataset):
    trained = [dataset.history(u)[:n] for u, n in enumerate(dataset.train_length_U.tolist())]
    counts_V = np.bincount(np.concatenate(trained), minlength=dataset.num_items_with_padding)
    np.testing.assert_array_equal(popularity(dataset)([EMPTY])[0], counts_V)
