"""Trimmed task vectors whose signs are elected (TIES-Merging, arXiv 2306.01708)."""

from __future__ import annotations

from pitune.methods.merge import Merge

GRID = ((0.2, 1.0), (0.5, 1.0), (0.2, 1.5), (0.5, 1.5), (0.2, 2.0), (0.5, 0.5), (0.1, 1.0), (0.8, 1.0))
"""Densities (the share that is kept) and scales."""


class Ties(Merge):
    """Trimmed task vectors whose signs are elected (TIES-Merging, arXiv 2306.01708).

    Settings, in order: for each (density, scale) of (0.2, 1) (the paper's), (0.5, 1), (0.2, 1.5), (0.5, 1.5),
    (0.2, 2), (0.5, 0.5), (0.1, 1), (0.8, 1), each k of ``sweep.top_k``.
    """

    name = "ties"
    title = "TIES"
    note = "the neighbours' and the own expert's task vectors, trimmed, and averaged where they agree in sign (TIES)"
    rule = "trim"
    grid = tuple({"density": density, "scale": scale} for density, scale in GRID)
