"""Tuning from the nearest neighbour's expert (SPoT, arXiv 2110.07904)."""

from pitune.methods.base import Method


class Nearest(Method):
    """Tuning from the nearest neighbour's expert (SPoT, arXiv 2110.07904)."""

    name = "nearest"
    title = "nearest"
    note = "started from the nearest neighbour's expert and tuned on the shots (SPoT)"
    sees = "shots"
