import pytest

from recsys.serve.config import ServeConfig, parse_config
from recsys.serve.schema import Limits


def test_settings_are_read():
    args = {"model_directory": "m", "max_replicas": 3, "limits": {"max_k": 5}}
    expected = ServeConfig(model_directory="m", max_replicas=3, limits=Limits(max_k=5))
    assert parse_config(args) == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "need model_directory"),
        ({"model_directory": 3}, "must be text"),
        ({"model_directory": "m", "max_replica": 3}, "did you mean 'max_replicas'"),
        ({"model_directory": "m", "limits": {"maxk": 3}}, "did you mean 'max_k'"),
        ({"model_directory": "m", "limits": 5}, "limits must be a mapping"),
        ({"model_directory": "m", "min_replicas": 0}, "min_replicas must be a positive"),
        ({"model_directory": "m", "batch_size": "9"}, "batch_size must be a positive"),
        ({"model_directory": "m", "batch_wait_s": -1}, "batch_wait_s must be 0 or more"),
        ({"model_directory": "m", "min_replicas": 3, "max_replicas": 2}, "min_replicas 3 >"),
    ],
)
def test_slips_are_refused(args, words):
    with pytest.raises(ValueError, match=words):
        parse_config(args)
