"""Similarity of task embeddings: which tasks' experts pull on the same parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.embedding.settings import Similarity
from pitune.experts import Expert


def similarity(one: Expert, other: Expert, how: Similarity = "cosine_per_tensor") -> float:
    """Compare two task embeddings with the same sites and shapes: 1 for proportional ones, 0 for disjoint ones."""
    pairs = [
        (one[site][key].flatten().double(), other[site][key].flatten().double()) for site in one for key in one[site]
    ]
    if how == "cosine_per_tensor":
        return sum(_cosine(a, b) for a, b in pairs) / len(pairs)
    a, b = (torch.cat([pair[index] for pair in pairs]) for index in (0, 1))
    if how == "cosine":
        return _cosine(a, b)
    total = (a + b).clamp_min(torch.finfo(torch.float64).tiny)  # where both are zero, so are the quotients
    return _cosine(a / total, b / total)


def _cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors; 0 where one of them is zero."""
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0
