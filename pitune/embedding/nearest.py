"""The nearest of very many vectors: what comparing all pairs would take too long for.

A graph compares every slice with every source. That is exact, by any similarity, and grows with the square of the
slices: of 100,000 the pairs alone would be ten billion rows. Here vectors are made short by a random projection, which
keeps distances to a few per cent whatever they are (Johnson and Lindenstrauss, 1984), and searched with an inverted
file: k-means cuts them into cells, and each looks for its nearest in the nearest cells only.

Cosines become distances, |a - b|² = 2 - 2 cos(a, b), for a projection errs by a share of what it keeps: the distance of
two that are close it keeps well, while their cosine is near 1, as that of many Fisher embeddings is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pitune.embedding.similarity import Block, Tensors

WIDTH = 256
"""Numbers of a projected vector."""
EXACT = 10_000
"""So many vectors are compared pair by pair: it takes a few seconds."""
CELLS = 2.0
"""Cells, times the root of the number of vectors."""
LOOKED_INTO = 12
"""Cells that are searched for a vector's nearest."""
ROUNDS, A_CELL = 10, 64
"""Of k-means, and how many vectors it looks at for each cell."""


def directions(rows: Block, tensors: Tensors) -> Block:
    """Return vectors (rows, parameters) whose inner products are ``rows``' cosines of each tensor, averaged.

    That is :func:`~pitune.embedding.similarity.cosine_per_tensor`; of one tensor that is all columns, it is the cosine.

    Args:
        rows: (rows, parameters).
        tensors: the columns of each tensor; one that is zero stays so.
    """
    found = np.zeros_like(rows)
    for part in tensors:
        sizes = np.linalg.norm(rows[:, part].astype(np.float64), axis=1, keepdims=True) * np.sqrt(len(tensors))
        np.divide(rows[:, part], sizes, out=found[:, part], where=sizes > 0, casting="unsafe")
    return found


def projected(blocks: Iterable[Block], width: int = WIDTH, seed: int = 0) -> Block:
    """Project vectors that come in blocks (rows, parameters) at random: (all rows, width). No block is kept.

    The matrix is sparse (Li, Hastie and Church, KDD 2006), so that a number costs the root of the parameters.

    Raises:
        ValueError: there is no block.
    """
    from sklearn.random_projection import SparseRandomProjection

    projection = SparseRandomProjection(width, random_state=seed, dense_output=True)
    parts: list[Block] = []
    for block in blocks:
        if not parts:
            projection.fit(block[:1])
        parts.append(projection.transform(block).astype(np.float32))
    return np.concatenate(parts)


def nearest(vectors: Block, k: int) -> tuple[NDArray[np.int64], Block]:
    """Return for each vector (rows, width) the ``k`` others that are the nearest, and their squared distances.

    Exact up to :data:`EXACT` vectors; of more, few are missed, for others that are hardly farther
    (``benchmarks/nearest.py`` measures how many).

    Args:
        vectors: (rows, width), float32.
        k: how many, fewer than there are vectors.

    Returns:
        Their places, (rows, k), nearest first, and their squared distances, likewise.
    """
    import faiss

    rows, width = vectors.shape
    index: Any = faiss.IndexFlatL2(width)
    if rows > EXACT:
        index = faiss.IndexIVFFlat(index, width, round(CELLS * rows**0.5))
        index.cp.niter, index.cp.max_points_per_centroid, index.nprobe = ROUNDS, A_CELL, LOOKED_INTO
        index.train(vectors)
    index.add(vectors)
    distances, places = index.search(vectors, k + 1)
    itself = places == np.arange(rows)[:, None]
    itself[~itself.any(1), -1] = True  # among more than k equal ones: any of them may go
    return places[~itself].reshape(rows, k), distances[~itself].reshape(rows, k)
