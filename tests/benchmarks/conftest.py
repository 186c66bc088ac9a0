"""Rows without a repository: tests also run where there is none."""

import pytest


@pytest.fixture(autouse=True)
def stamped(monkeypatch):
    """What a row says of where and when it was measured."""
    stamp = {"hardware": {"cores": 2}, "commit": "0123456789", "date": "2026-01-01"}
    monkeypatch.setattr("benchmarks.rows.stamp", lambda: stamp)
