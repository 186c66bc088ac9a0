"""Evaluation: full ranking, metrics with intervals, bytes and milliseconds."""
