"""Groups of tasks: how many are tried, and which tasks the graph finds alike, against plain merging by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pitune.embedding.groups import grouped, numbers_of_groups


def test_from_all_together_to_each_alone_and_then_between() -> None:
    assert numbers_of_groups(20, 3) == [1, 20, 4]  # √20 is 4.5, and 4 the even one of its neighbours: 4.47
    assert numbers_of_groups(20, 8)[:3] == [1, 20, 4]
    assert [numbers_of_groups(1, 8), numbers_of_groups(2, 8), numbers_of_groups(3, 8)] == [[1], [1, 2], [1, 3, 2]]
    assert sorted(numbers_of_groups(20, 99)) == list(range(1, 21))
    for most in range(1, 20):
        assert numbers_of_groups(20, most) == numbers_of_groups(20, 20)[:most]


def plain(similarities: np.ndarray, count: int) -> list[list[int]]:
    """Join the two groups with the largest mean similarity until so many are left."""
    groups = [[place] for place in range(len(similarities))]
    while len(groups) > count:
        pairs = [(a, b) for a in range(len(groups)) for b in range(a)]
        a, b = max(pairs, key=lambda pair: similarities[np.ix_(groups[pair[0]], groups[pair[1]])].mean())
        groups[b] += groups.pop(a)
    return sorted(sorted(group) for group in groups)


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_plain_average_linkage(seed: int) -> None:
    numbers = np.random.default_rng(seed).normal(size=(9, 9))
    similarities = numbers + numbers.T
    for count in range(1, 10):
        assert grouped(similarities, count) == plain(similarities, count)


def test_of_equals_there_are_as_many_groups_as_asked_for() -> None:
    for count in range(1, 6):
        found = grouped(np.zeros((5, 5)), count)
        assert len(found) == count and sorted(place for group in found for place in group) == list(range(5))
