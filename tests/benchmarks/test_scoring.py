import numpy as np
import pytest

from benchmarks import scoring
from benchmarks.rows import Results, values_of


@pytest.fixture(scope="module")
def items():
    return scoring.catalogue(num_items=900, width=32, num_queries=12)


@pytest.mark.parametrize("form", scoring.FORMS)
def test_every_form_finds_the_best_items(items, form):
    search, size = scoring.search_of(form, items)
    coded = form in (scoring.ROWS, scoring.CODES, scoring.PRUNED)
    scores_QV = items.states_QD @ (items.coded_VD if coded else items.table_VD).T
    exact = form in ("fp32", scoring.CODES, scoring.PRUNED)
    for state_D, scores_V in zip(items.states_QD, scores_QV, strict=True):
        found_K = search(state_D)
        if exact:
            np.testing.assert_allclose(scores_V[found_K], np.sort(scores_V)[:-11:-1], rtol=1e-4)
        assert len(np.intersect1d(found_K, np.argsort(-scores_V)[:10])) >= (10 if exact else 6)
    assert size <= items.table_VD.nbytes


def test_rows_are_written_once(tmp_path):
    results = Results("scoring", tmp_path)
    options = scoring.Options(num_items=(700,), num_queries=3)
    for _ in range(2):
        scoring.measure_catalogue(results, options, 700)
    recalls = values_of(results.rows(), "recall@10")
    assert len(recalls) == len(scoring.FORMS)
    assert values_of(results.rows(), "recall@10", variant="fp32") == [1.0]
    assert len(scoring.markdown(results.rows()).splitlines()) == 2 + len(scoring.FORMS)
