"""The nearest of many vectors against a plain loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from pitune.embedding import nearest as module
from pitune.embedding.nearest import directions, nearest, projected
from pitune.embedding.similarity import Block, cosine, cosine_per_tensor

TENSORS = (slice(0, 10), slice(10, 40))


def families(rows: int, width: int, seed: int = 0) -> Block:
    """Return positive vectors, some of them like each other."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(20, width))
    return np.exp(centres[chance.integers(20, size=rows)] + 0.3 * chance.normal(size=(rows, width))).astype(np.float32)


def plain(vectors: Block, k: int) -> list[list[int]]:
    """Return the places of each vector's nearest others, one pair at a time."""
    found = []
    for row, one in enumerate(vectors):
        distances = [(float(np.sum((one - other) ** 2)), place) for place, other in enumerate(vectors) if place != row]
        found.append([place for _, place in sorted(distances)[:k]])
    return found


def test_of_few_it_is_exact() -> None:
    vectors = families(60, 8)
    places, distances = nearest(vectors, 5)
    assert places.tolist() == plain(vectors, 5)
    assert distances[3, 2] == pytest.approx(np.sum((vectors[3] - vectors[places[3, 2]]) ** 2), rel=1e-4)


def test_of_many_it_finds_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = families(3_000, 16)
    right = nearest(vectors, 10)[0]
    monkeypatch.setattr(module, "EXACT", 100)
    found = nearest(vectors, 10)[0]
    shares = [len(set(one) & set(other)) / 10 for one, other in zip(found.tolist(), right.tolist(), strict=True)]
    assert np.mean(shares) > 0.95
    assert not (found == np.arange(3_000)[:, None]).any()


def test_equal_vectors_are_each_other_s_nearest() -> None:
    places, distances = nearest(np.ones((6, 4), np.float32), 2)
    assert places.shape == (6, 2) and not distances.any()


def test_directions_have_the_cosines_of_each_tensor() -> None:
    one, other = families(7, 40), families(5, 40, seed=1)
    got = directions(one, TENSORS) @ directions(other, TENSORS).T
    assert got == pytest.approx(cosine_per_tensor(one, other, TENSORS), abs=1e-5)
    whole = [slice(0, 40)]
    assert directions(one, whole) @ directions(other, whole).T == pytest.approx(cosine(one, other, whole), abs=1e-5)


def test_a_tensor_that_is_zero_stays_so() -> None:
    rows = families(2, 40)
    rows[1, TENSORS[0]] = 0
    got = directions(rows, TENSORS)
    assert not got[1, TENSORS[0]].any() and np.isfinite(got).all()
    assert got @ got.T == pytest.approx(cosine_per_tensor(rows, rows, TENSORS), abs=1e-5)


def test_a_projection_keeps_distances_whatever_the_blocks() -> None:
    rows = directions(families(30, 600), [slice(0, 600)])
    short = projected([rows[:10], rows[10:]], 512)
    assert short.shape == (30, 512) and short.dtype == np.float32
    assert short == pytest.approx(projected([rows], 512), abs=1e-6)
    before, after = (((held[:, None] - held) ** 2).sum(-1)[np.triu_indices(30, 1)] for held in (rows, short))
    assert np.abs(after / before - 1).mean() < 0.08  # the root of 2 / 512 is 0.06
