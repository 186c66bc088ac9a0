"""What importing may pull in, in a fresh interpreter."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("recsys.models", "ray"),
        ("jobs.pipeline", "ray"),
        ("jobs.pipeline", "torch._dynamo"),  # two seconds of every process
        ("jobs.pipeline", "torch._inductor"),
        ("recsys.train.fit", "ray"),
        ("recsys.search.frontier", "ray"),
        ("recsys.serve.recommender", "torch"),
        ("recsys.serve.recommender", "numba"),
        ("recsys.evaluate.report", "torch"),
        ("recsys.data.batches", "torch"),
    ],
)
def test_import_is_lean(module, unwanted):
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
