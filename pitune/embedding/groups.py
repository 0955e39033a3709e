"""Groups of tasks that are alike: how many to try, and which they are. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def numbers_of_groups(tasks: int, most: int) -> list[int]:
    """Return so many different numbers of groups at most, in the order in which to try them.

    All tasks together, each alone, then the geometric mean of the two, those of it and its neighbours, and so forth:
    what is tried of few is tried of more, too.
    """
    found: dict[int, None] = {}
    for share in _halves():
        found.setdefault(round(tasks**share))
        if len(found) == min(tasks, most):
            return list(found)
    raise AssertionError("the shares come near to every number")


def grouped(similarities: NDArray[np.float64], count: int) -> list[list[int]]:
    """Return groups of tasks that are alike: their places in order, group by group, by the first of each.

    Agglomerative: the two groups with the largest mean similarity between their tasks become one (average linkage),
    until so many are left.

    Args:
        similarities: (tasks, tasks) of two or more, symmetric; the diagonal does not count.
        count: groups, from 1 to the number of tasks.
    """
    from scipy.cluster import hierarchy  # late: it takes a while
    from scipy.spatial.distance import squareform

    apart = similarities.max() - similarities
    np.fill_diagonal(apart, 0)
    tree = hierarchy.linkage(squareform(apart, checks=False), "average")
    of = hierarchy.cut_tree(tree, count)[:, 0]
    return [np.flatnonzero(of == group).tolist() for group in dict.fromkeys(of.tolist())]


def _halves() -> Iterator[float]:
    """Yield 0, 1, 1/2, 1/4, 3/4, 1/8 and so forth."""
    yield from (0.0, 1.0)
    for power in itertools.count(1):
        yield from (odd / 2**power for odd in range(1, 2**power, 2))
