"""Similarities against closed forms."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from pitune.embedding.settings import Similarity
from pitune.embedding.similarity import similarity
from pitune.experts import Expert


def embedding(*tensors: list[float]) -> Expert:
    return {f"site{number}": {"weight": torch.tensor(values)} for number, values in enumerate(tensors)}


@pytest.mark.parametrize("how", get_args(Similarity))
def test_closed_forms(how: Similarity) -> None:
    one = embedding([1.0, 2.0], [3.0, 0.0])
    assert similarity(one, one, how) == pytest.approx(1.0)
    disjoint = embedding([0.0, 0.0], [0.0, 5.0])
    assert similarity(one, disjoint, how) == 0.0
    assert similarity(one, embedding([2.0, 1.0], [1.0, 1.0]), how) == pytest.approx(
        similarity(embedding([2.0, 1.0], [1.0, 1.0]), one, how)
    )


def test_cosine_per_tensor_is_the_mean_over_tensors_whatever_their_size() -> None:
    one, other = embedding([1.0, 0.0], [100.0, 0.0]), embedding([1.0, 1.0], [0.0, 7.0])
    assert similarity(one, other, "cosine_per_tensor") == pytest.approx((2**-0.5 + 0) / 2)
    assert similarity(one, embedding([3.0, 0.0], [0.5, 0.0]), "cosine_per_tensor") == pytest.approx(1.0)


def test_cosine_is_of_the_whole_vector() -> None:
    one, other = embedding([1.0, 0.0], [2.0]), embedding([2.0, 3.0], [1.0])
    assert similarity(one, other, "cosine") == pytest.approx(4 / (5 * 14) ** 0.5)


def test_task2vec_by_hand() -> None:
    one, other = embedding([1.0, 3.0, 0.0]), embedding([1.0, 1.0, 0.0])
    # a / (a + b) = (1/2, 3/4, 0), b / (a + b) = (1/2, 1/4, 0)
    expected = (1 / 4 + 3 / 16) / ((1 / 4 + 9 / 16) ** 0.5 * (1 / 4 + 1 / 16) ** 0.5)
    assert similarity(one, other, "task2vec") == pytest.approx(expected)


def test_tiny_values_do_not_vanish() -> None:
    small = embedding([1e-30, 2e-30], [1e-32])
    for how in get_args(Similarity):
        assert similarity(small, small, how) == pytest.approx(1.0)


def test_zero_embeddings_have_no_similarity() -> None:
    zero = embedding([0.0, 0.0])
    assert all(similarity(zero, embedding([1.0, 1.0]), how) == 0.0 for how in get_args(Similarity))
