"""The similarities written out one pair at a time: what the blocks are compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def plain_similarity(one: Sequence[np.ndarray], other: Sequence[np.ndarray], how: str) -> float:
    """Compare two task embeddings, given as their parameter tensors: the formulas, with exact sums."""
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(one, other, strict=True)]
    if how == "cosine_per_tensor":
        return sum(plain_cosine(a, b) for a, b in pairs) / len(pairs)
    a, b = (np.concatenate([pair[index] for pair in pairs]) for index in (0, 1))
    if how == "cosine":
        return plain_cosine(a, b)
    assert how == "task2vec"
    there = a + b > 0
    return plain_cosine(a[there] / (a + b)[there], b[there] / (a + b)[there])


def plain_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two vectors; 0 where one of them is zero."""
    size = math.sqrt(math.fsum(a * a)) * math.sqrt(math.fsum(b * b))
    return math.fsum(a * b) / size if size > 0 else 0.0
