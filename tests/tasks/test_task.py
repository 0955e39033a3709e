"""Slices: their written form, their order, and what they draw."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from pitune.errors import PituneError
from pitune.tasks.task import WAYS, Example, Slice, Task, draw


def make_task(per_class: int, classes: int = 3) -> Task:
    train = tuple(Example(f"k{i}", f"text {i}", i % classes) for i in range(per_class * classes))
    validation = tuple(Example(f"v{i}", f"other {i}", i) for i in range(classes))
    labels = tuple("abcdefgh"[:classes])
    return Task("toy", "text", "accuracy", labels, labels, {"train": train, "validation": validation, "test": ()}, "f")


@pytest.mark.parametrize("text", ["movie@16#0", "movie@full#3", "my-own_task2@1#12", "movie@16#0~2of4"])
def test_a_slice_is_read_as_it_is_written(text: str) -> None:
    assert str(Slice.parse(text)) == text


NOT = ["movie", "movie@0#1", "movie@-1#0", "Movie@1#0", "movie@1", "movie@1#0 ", "@1#0"]
NOT_FOLDS = ["movie@1#0~0of2", "movie@1#0~3of2", "movie@1#0~1", "movie@full#0~1of2"]


@pytest.mark.parametrize("text", [*NOT, *NOT_FOLDS])
def test_what_is_no_slice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a slice"):
        Slice.parse(text)


def test_slices_are_ordered_with_full_last() -> None:
    slices = [Slice.parse(text) for text in ("b@4#0", "a@full#0", "a@16#1", "a@16#0", "a@4#2")]
    assert [str(one) for one in sorted(slices)] == ["a@4#2", "a@16#0", "a@16#1", "a@full#0", "b@4#0"]


@pytest.mark.parametrize(("shots", "further"), [(1, 1), (3, 3), (4, 4), (16, 4)])
def test_shots_are_per_class_and_never_validated_on(shots: int, further: int) -> None:
    drawn = draw(make_task(per_class=20), Slice("toy", shots, 0))
    for label in range(3):
        assert sum(example.label == label for example in drawn.train) == shots
        assert sum(example.label == label for example in drawn.validation) == further
    keys = [example.key for example in drawn.train + drawn.validation]
    assert len(set(keys)) == len(keys)


def test_more_shots_extend_fewer_and_seeds_differ() -> None:
    task = make_task(per_class=40)
    few, more = (draw(task, Slice("toy", shots, 5)) for shots in (4, 16))
    for label in range(3):
        assert [e for e in more.train if e.label == label][:4] == [e for e in few.train if e.label == label]
    assert more.validation == few.validation
    assert draw(task, Slice("toy", 4, 5)) == few
    assert draw(task, Slice("toy", 4, 6)) != few


@pytest.mark.parametrize(("shots", "folds"), [(16, 4), (16, 2), (4, 2), (5, 3), (1, 2)])
def test_each_example_is_held_out_once_and_folds_are_balanced(shots: int, folds: int) -> None:
    task, whole = make_task(per_class=20), Slice("toy", shots, 3)
    data = draw(task, whole)
    parts = [draw(task, fold) for fold in whole.dealt(folds)]
    everything = {*data.train, *data.validation}
    held = [example for part in (data, *parts) for example in part.validation]
    assert len(held) == len({*held}) and {*held} == everything
    for part in parts:
        assert {*part.train} == everything - {*part.validation} and {*data.validation} <= {*part.train}
        assert len(part.train) == len({*part.train})
        counts = [sum(example.label == label for example in part.validation) for label in range(3)]
        assert max(counts) - min(counts) <= 1 and abs(sum(counts) - len(data.train) / folds) < 1


def test_folds_come_after_their_slice_and_are_no_more_than_there_are_shots() -> None:
    whole = Slice("toy", 1, 0)
    first, *rest = whole.dealt(4)
    assert sorted([*rest, first, whole]) == [whole, first, *rest] and str(first) == "toy@1#0~1of4"
    with pytest.raises(PituneError, match=r"^slice toy@1#0~1of4: has 3 shots in all, 4 folds need 4 or more$"):
        draw(make_task(per_class=8), first)


def test_a_full_slice_has_everything() -> None:
    task = make_task(per_class=5)
    drawn = draw(task, Slice("toy", None, 7))
    assert drawn.train == task.splits["train"] and drawn.validation == task.splits["validation"]


def test_too_few_examples_are_one_line() -> None:
    draw(make_task(per_class=8), Slice("toy", 4, 0))
    with pytest.raises(PituneError, match=r"^slice toy@4#0: class 'a' of task toy has 7 training examples.* need 8$"):
        draw(make_task(per_class=7), Slice("toy", 4, 0))


def make_retrieval(count: int) -> Task:
    train = tuple(Example(f"p{i}", f"text {i}", i) for i in range(count))
    captions = tuple(f"caption {i}" for i in range(count))
    splits = {"train": train, "validation": train[:1], "test": train[:1]}
    return Task("toy", "text", "accuracy", captions, captions, splits, "f", "retrieval")


def test_a_retrieval_task_is_dealt_into_groups_of_equal_size_whatever_the_order() -> None:
    task = make_retrieval(103)
    assert sorted(map(len, task.pools)) == [20, 20, 21, 21, 21] and len(task.pools) == WAYS
    by_hash = sorted((hashlib.sha256(f"pool {one.key}".encode()).hexdigest(), one) for one in task.splits["train"])
    assert [one.key for one in task.pools[1]] == [one.key for place, (_, one) in enumerate(by_hash) if place % 5 == 1]
    turned = dataclasses.replace(task, splits={**task.splits, "train": task.splits["train"][::-1]})
    assert turned.pools == task.pools


@pytest.mark.parametrize("shots", [1, 4, 16])
def test_a_shot_of_a_retrieval_task_is_one_example_of_each_group(shots: int) -> None:
    task = make_retrieval(100)
    drawn = draw(task, Slice("toy", shots, 3))
    expected = [
        task.pools[group][place]
        for group in range(WAYS)
        for place in np.random.default_rng([3, group]).permutation(20)[:shots]
    ]
    assert list(drawn.train) == expected and len(drawn.validation) == WAYS * min(shots, 4)
    assert not set(drawn.train) & set(drawn.validation)
    with pytest.raises(PituneError, match=r"^slice toy@16#0: group 5 of the 5 that retrieval task toy's .* has 19 tr"):
        draw(make_retrieval(99), Slice("toy", 16, 0))


def make_multilabel(sizes: dict[tuple[int, ...], int], classes: int = 3) -> Task:
    """A task with so many training examples of each set of labels."""
    sets = [has for has, size in sizes.items() for _ in range(size)]
    train = tuple(Example(f"k{i}", f"text {i}", has) for i, has in enumerate(sets))
    labels = tuple("abcdefgh"[:classes])
    splits = {"train": train, "validation": train[:1], "test": train[:1]}
    return Task("toy", "text", "mean_average_precision", labels, labels, splits, "f", "multilabel")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shots", [1, 4, 16])
def test_an_example_of_several_labels_counts_for_each_and_comes_once(shots: int, seed: int) -> None:
    task = make_multilabel({(0,): 20, (1,): 10, (0, 1): 20, (0, 1, 2): 12, (2,): 13, (): 30})
    drawn = draw(task, Slice("toy", shots, seed))
    for part, least in ((drawn.train, shots), (drawn.validation, min(shots, 4))):
        counts = [sum(label in one.labels for one in part) for label in range(3)]
        assert min(counts) >= least and len(part) <= 3 * least
        assert all(one.labels for one in part)
        # Nobody is there in vain: the last that was taken gave a label what it lacked.
        assert min(counts) == least
    keys = [one.key for one in drawn.train + drawn.validation]
    assert len(set(keys)) == len(keys)
    assert draw(task, Slice("toy", shots, seed)) == drawn != draw(task, Slice("toy", shots, seed + 9))
    more = draw(task, Slice("toy", 16, seed))
    assert set(drawn.train) <= set(more.train)


def test_a_rare_label_has_its_shots_and_others_leave_it_something_to_validate_on() -> None:
    task = make_multilabel({(0,): 40, (0, 1): 8, (1, 2): 12})
    drawn = draw(task, Slice("toy", 8, 0))
    assert min(sum(label in one.labels for one in drawn.train) for label in range(3)) == 8
    assert all(any(label in one.labels for one in drawn.validation) for label in range(3))
    with pytest.raises(PituneError, match=r"^slice toy@16#0: class 'c' of task toy has 12 training examples"):
        draw(task, Slice("toy", 16, 0))
