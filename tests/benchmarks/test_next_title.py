import pytest

from benchmarks import next_title
from benchmarks.rows import Results, Subject


def test_the_table_says_what_of_the_gap_is_closed(tmp_path):
    results = Results("next_title", tmp_path)
    found = {"teacher": 0.08, "student alone": 0.04, "student": 0.07, "compressed student": 0.06}
    for variant, ndcg in found.items():
        values = {"ndcg@10": (ndcg, ""), "hr@10": (0.1, ""), "size_bytes": (2.0**20, "bytes")}
        results.put(Subject("movielens-1m", "recsys", variant, 0), "command", values)
    lines = next_title.markdown(results.rows()).splitlines()
    assert "| teacher | 0.0800 | 0.1000 | 1 | 1.0 MiB |" in lines
    assert "| of the gap, the student closes | 75% | there is none |  |  |" in lines
    assert "| of the teacher, the compressed student keeps | 75% | 100% |  |  |" in lines


@pytest.mark.parametrize("given", [{"dataset": "yelp", "items": "i"}, {"dataset": "movielens-1m"}])
def test_what_has_no_titles_is_refused(given):
    with pytest.raises(ValueError, match="give one of movielens-1m, amazon-beauty"):
        next_title.Options(**given)


def test_a_row_s_command_has_what_was_read():
    options = next_title.Options(dataset="movielens-1m", items="items.csv", num_last=3)
    words = "movielens-1m --num-last 3 --num-per-user 2 --max-tokens 32 --seeds 1"
    assert " ".join(next_title._words(options, 1)) == words
