"""Measurements, each written by a command, and the results they wrote."""
