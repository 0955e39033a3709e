"""Similarities: which slices' vectors point the same way.

A similarity compares two blocks of vectors at once: rows of numbers, a row for each slice, whose columns are tensors
one after another (of a task embedding, the experts' parameters; :mod:`pitune.embedding.spaces` has the others). It
gives 1 for proportional vectors and 0 for disjoint ones. A new one is a function and a line in :data:`SIMILARITIES`.

Fisher information can be as small as float32 goes: whatever is squared or summed is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Block: TypeAlias = NDArray[np.float32]
Matrix: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = Sequence[slice]
"""The columns of each parameter tensor; together they are all columns, in order."""

NEAREST = 10
"""How many of a slice's nearest say how near it is to others at all."""
CSLS = "csls"
PAIRS_AT_ONCE, COLUMNS_AT_ONCE = 64, 1024  # of float64: half a megabyte, which stays in a processor's cache
TINY = np.finfo(np.float64).tiny


def cosine_per_tensor(one: Block, other: Block, tensors: Tensors) -> Matrix:
    """Return the cosine of each parameter tensor, averaged (pi-Tuning, arXiv 2304.14381, section 3.2).

    Args:
        one: (A, parameters).
        other: (B, parameters).
        tensors: the columns of each tensor; one that is zero in either embedding counts as 0.

    Returns:
        (A, B).
    """
    total = np.zeros((len(one), len(other)))
    for part in tensors:
        a, b = one[:, part].astype(np.float64), other[:, part].astype(np.float64)
        total += _cosines(a @ b.T, _squares(a)[:, None], _squares(b))
    return total / len(tensors)


def cosine(one: Block, other: Block, tensors: Tensors) -> Matrix:
    """Return the cosine of the whole vectors, (A, B), of ``one`` (A, parameters) and ``other`` (B, parameters)."""
    dots, ones, others = np.zeros((len(one), len(other))), np.zeros(len(one)), np.zeros(len(other))
    for part in tensors:  # part by part, so that float64 copies stay small
        a, b = one[:, part].astype(np.float64), other[:, part].astype(np.float64)
        dots += a @ b.T
        ones += _squares(a)
        others += _squares(b)
    return _cosines(dots, ones[:, None], others)


def task2vec(one: Block, other: Block, tensors: Tensors) -> Matrix:
    """Return the cosine of embeddings normalised by their sum, (A, B) (Task2Vec, arXiv 1902.03545, eq. 5).

    The sum is another one for every pair, which no matrix product can take apart: each row of ``one`` (A, parameters)
    meets some rows of ``other`` (B, parameters) at a time. Where both are zero, so are the quotients.
    """
    found = np.zeros((len(one), len(other)))
    for row, near in enumerate(one):
        for first in range(0, len(other), PAIRS_AT_ONCE):
            found[row, first : first + PAIRS_AT_ONCE] = _task2vec(near, other[first : first + PAIRS_AT_ONCE])
    return found


def _task2vec(one: Block, others: Block) -> Matrix:
    """Compare one embedding (parameters,) with some others (pairs, parameters): (pairs,)."""
    sums = np.zeros((3, len(others)))
    for first in range(0, len(one), COLUMNS_AT_ONCE):
        a = one[first : first + COLUMNS_AT_ONCE].astype(np.float64)
        b = others[:, first : first + COLUMNS_AT_ONCE].astype(np.float64)
        total = np.maximum(a + b, TINY)
        b /= total
        a = np.divide(a, total, out=total)  # now (pairs, columns), as b is
        sums += np.einsum("pc,pc->p", a, b), _squares(a), _squares(b)
    return _cosines(*sums)


def _squares(rows: Matrix) -> Matrix:
    """Return the sum of each row's squares: (rows,)."""
    found: Matrix = np.einsum("rc,rc->r", rows, rows)
    return found


def _cosines(dots: Matrix, ones: Matrix, others: Matrix) -> Matrix:
    """Return cosines by inner products and sums of squares, which broadcast; 0 where a vector is zero."""
    sizes = np.sqrt(ones) * np.sqrt(others)
    found: Matrix = np.divide(dots, sizes, out=np.zeros_like(dots), where=sizes > 0)
    return found


def csls(similarity: Matrix, known: NDArray[np.bool_], rows: Sequence[int]) -> Matrix:
    """Return similarities less what any two slices share (CSLS, arXiv 1710.04087, section 2.3).

    Some sources, hubs, are near everyone. Taken off is the mean of the similarities that a slice has to its
    :data:`NEAREST` nearest sources: of the target and the source, half of each.

    Args:
        similarity: (targets, sources).
        known: which of them count, (targets, sources): those of two different tasks.
        rows: where each source stands among the targets, (sources,).

    Returns:
        (targets, sources); what a source is near to depends on the sources alone.
    """
    ordered = np.sort(np.where(known, similarity, -np.inf), axis=1)[:, ::-1][:, :NEAREST]
    counted = np.isfinite(ordered)
    near = np.where(counted, ordered, 0).sum(1) / np.maximum(counted.sum(1), 1)
    found: Matrix = similarity - (near[:, None] + near[list(rows)]) / 2
    return found


SIMILARITIES: dict[str, Callable[[Block, Block, Tensors], Matrix]] = {
    "cosine_per_tensor": cosine_per_tensor,
    "cosine": cosine,
    "task2vec": task2vec,
}
"""The similarities by their names in a study's configuration: of ``one`` (A, parameters), ``other`` (B, parameters) and
the columns of each tensor to (A, B)."""
