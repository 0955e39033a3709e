"""Similarities against closed forms, and in blocks against one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
from plainsimilarity import plain_similarity
from pydantic import ValidationError

from pitune.embedding import similarity as module
from pitune.embedding.settings import EmbeddingSettings
from pitune.embedding.similarity import COLUMNS_AT_ONCE, PAIRS_AT_ONCE, SIMILARITIES, csls

Tensors = tuple[list[float], ...]


def compared(one: Tensors, other: Tensors, how: str) -> float:
    """Compare two embeddings, given as their tensors, as blocks of one row."""
    edges = np.cumsum([0, *map(len, one)])
    tensors = [slice(*edges[index : index + 2]) for index in range(len(one))]
    rows = [np.concatenate(held).astype(np.float32)[None] for held in (one, other)]
    return float(SIMILARITIES[how](*rows, tensors)[0, 0])


@pytest.mark.parametrize("how", SIMILARITIES)
def test_closed_forms(how: str) -> None:
    one = ([1.0, 2.0], [3.0, 0.0])
    assert compared(one, one, how) == pytest.approx(1.0)
    assert compared(one, ([0.0, 0.0], [0.0, 5.0]), how) == 0.0
    other = ([2.0, 1.0], [1.0, 1.0])
    assert compared(one, other, how) == pytest.approx(compared(other, one, how))


def test_cosine_per_tensor_is_the_mean_over_tensors_whatever_their_size() -> None:
    one, other = ([1.0, 0.0], [100.0, 0.0]), ([1.0, 1.0], [0.0, 7.0])
    assert compared(one, other, "cosine_per_tensor") == pytest.approx((2**-0.5 + 0) / 2)
    assert compared(one, ([3.0, 0.0], [0.5, 0.0]), "cosine_per_tensor") == pytest.approx(1.0)


def test_cosine_is_of_the_whole_vector() -> None:
    assert compared(([1.0, 0.0], [2.0]), ([2.0, 3.0], [1.0]), "cosine") == pytest.approx(4 / (5 * 14) ** 0.5)


def test_task2vec_by_hand() -> None:
    one, other = ([1.0, 3.0, 0.0],), ([1.0, 1.0, 0.0],)
    # a / (a + b) = (1/2, 3/4, 0), b / (a + b) = (1/2, 1/4, 0)
    expected = (1 / 4 + 3 / 16) / ((1 / 4 + 9 / 16) ** 0.5 * (1 / 4 + 1 / 16) ** 0.5)
    assert compared(one, other, "task2vec") == pytest.approx(expected)


@pytest.mark.parametrize("how", SIMILARITIES)
def test_tiny_values_do_not_vanish(how: str) -> None:
    small = ([1e-30, 2e-30], [1e-32])
    assert compared(small, small, how) == pytest.approx(1.0)


@pytest.mark.parametrize("how", SIMILARITIES)
def test_zero_embeddings_have_no_similarity(how: str) -> None:
    assert compared(([0.0, 0.0],), ([1.0, 1.0],), how) == 0.0
    assert compared(([0.0, 0.0],), ([0.0, 0.0],), how) == 0.0


@pytest.mark.parametrize("how", SIMILARITIES)
def test_blocks_are_the_pairs_one_by_one(how: str) -> None:
    """Values of Fisher's sizes, over many powers of ten, with zeros; more rows and columns than any block holds."""
    generator = np.random.default_rng(0)
    sizes = (3, 2 * COLUMNS_AT_ONCE + 5, 40)
    edges = np.cumsum([0, *sizes])
    tensors = [slice(*edges[index : index + 2]) for index in range(len(sizes))]
    rows = np.exp(generator.normal(-12, 4, (PAIRS_AT_ONCE + 9, edges[-1]))).astype(np.float32)
    rows[generator.random(rows.shape) < 0.2] = 0.0
    rows[:, tensors[1]] *= np.float32(1e-9)
    rows[5] *= np.float32(1e-14)
    rows[6] = 0.0
    few = rows[:7]
    found = SIMILARITIES[how](few, rows, tensors)
    assert found.shape == (len(few), len(rows))
    assert found.dtype == np.float64
    split = [[row[part] for part in tensors] for row in rows]
    expected = [[plain_similarity(split[i], split[j], how) for j in range(len(rows))] for i in range(len(few))]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_what_two_slices_share_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pair by pair, by the formula; the slices a and b are of one task, and are no neighbours of each other."""
    monkeypatch.setattr(module, "NEAREST", 2)
    tasks, sources = ["a", "a", "c", "d", "e", "x"], [3, 0, 1, 2]  # rows of the targets, the last one no source
    similarity = np.random.default_rng(0).random((6, 4))
    known = np.array([[tasks[target] != tasks[source] for source in sources] for target in range(6)])

    def near(row: int) -> float:
        held = sorted((similarity[row, column] for column in range(4) if known[row, column]), reverse=True)[:2]
        return sum(held) / len(held)

    found = csls(similarity, known, sources)
    for target in range(6):
        for column, source in enumerate(sources):
            expected = similarity[target, column] - (near(target) + near(source)) / 2
            assert found[target, column] == pytest.approx(expected, abs=1e-12)


def test_a_hub_is_no_hub_after_it() -> None:
    """Of slices in pairs and a hub that is a little nearer to each than its other half, each has its other half."""
    pairs, hub = 8, 16
    similarity = np.full((17, 17), 0.2)
    for one in range(2 * pairs):
        similarity[one, one ^ 1] = 0.6
    similarity[hub], similarity[:, hub] = 0.65, 0.65
    known = ~np.eye(17, dtype=bool)
    before, after = (np.where(known, m, -np.inf).argmax(1) for m in (similarity, csls(similarity, known, range(17))))
    assert all(before[one] == hub and after[one] == one ^ 1 for one in range(2 * pairs))


def test_settings_take_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValidationError, match="it is one of cosine_per_tensor, cosine, task2vec, csls, weights, features, labels"
    ):
        EmbeddingSettings(similarity="dot")
    monkeypatch.setitem(SIMILARITIES, "dot", lambda one, other, _: one.astype(np.float64) @ other.T)
    assert EmbeddingSettings(similarity="dot").similarity == "dot"


def test_true_is_no_truth_value() -> None:
    assert EmbeddingSettings.model_validate({"labels": True}).labels == "true"
    with pytest.raises(ValidationError, match="'empirical' or 'true'"):
        EmbeddingSettings.model_validate({"labels": False})
