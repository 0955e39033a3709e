"""Merging task vectors that disagree: what lists of vectors of one tensor become. Pure functions.

Sources: TIES-Merging (arXiv 2306.01708, section 4), DARE (arXiv 2311.03099, section 3). As in PEFT, a share of a vector
is one of each tensor, not of all tensors together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def trimmed(vector: Tensor, density: float) -> Tensor:
    """Keep the largest numbers of ``vector``, a share of ``density``; the others become zero (TIES, step 1)."""
    kept = torch.zeros(vector.numel(), dtype=torch.bool)
    kept[vector.abs().flatten().topk(int(density * vector.numel())).indices] = True
    return vector * kept.view(vector.shape)


def dropped(vector: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each number of ``vector`` with a chance of ``density``, times 1 / density (DARE): the mean stays."""
    kept = torch.bernoulli(torch.full_like(vector, density), generator=generator)
    return vector * kept / density


def elected(vectors: Sequence[Tensor]) -> Tensor:
    """Elect each number's sign, by the sum, and average the vectors that have it (TIES, steps 2 and 3)."""
    stacked = torch.stack(list(vectors))
    signs = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == signs  # zeros never do
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def ties(vectors: Sequence[Tensor], density: float) -> Tensor:
    """Trim, elect signs, average what agrees."""
    return elected([trimmed(vector, density) for vector in vectors])


def dare_ties(vectors: Sequence[Tensor], density: float, generator: torch.Generator) -> Tensor:
    """Drop at random and rescale, elect signs, average what agrees."""
    return elected([dropped(vector, density, generator) for vector in vectors])
