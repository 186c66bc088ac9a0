"""Distillation: a small student learns from the large teacher."""
