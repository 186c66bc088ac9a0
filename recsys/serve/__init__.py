"""Serving: a model directory behind an HTTP endpoint."""
