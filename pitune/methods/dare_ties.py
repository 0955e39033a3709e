"""Task vectors with random numbers dropped, then signs elected (DARE, arXiv 2311.03099)."""

from __future__ import annotations

from pitune.methods.merge import Merge

GRID = ((0.2, 1.0), (0.5, 1.0), (0.2, 0.5), (0.5, 0.5), (0.1, 1.0), (0.8, 1.0), (0.5, 1.5), (0.1, 0.5))
"""Densities (the share that is kept) and scales."""


class DareTies(Merge):
    """Task vectors with random numbers dropped, then signs elected (DARE, arXiv 2311.03099).

    Settings, in order: for each (density, scale) of (0.2, 1), (0.5, 1), (0.2, 0.5), (0.5, 0.5), (0.1, 1),
    (0.8, 1), (0.5, 1.5), (0.1, 0.5), each k of ``sweep.top_k``.
    """

    name = "dare_ties"
    title = "DARE-TIES"
    note = (
        "the neighbours' and the own expert's task vectors, thinned at random, averaged where they agree in sign (DARE)"
    )
    rule = "drop"
    grid = tuple({"density": density, "scale": scale} for density, scale in GRID)
