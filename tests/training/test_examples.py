"""Rows: their order, their cached trunk outputs, and packed scoring."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tinymodel import KINDS, make_rows, make_task
from torch import nn

from pitune.backbones.text import TextBackbone
from pitune.training import examples
from pitune.training.examples import Rows, collate, group_losses, label_logits, stack_candidates

KIND = KINDS[0]


@pytest.fixture(scope="module")
def rows(tiny: TextBackbone) -> Rows:
    return make_rows(tiny, KIND, make_task("toy", 3, 50))


def test_the_order_is_the_names_and_takes_every_row_once_an_epoch(rows: Rows) -> None:
    order = rows.order("toy@full#0", steps=25, batch_size=4)
    assert order.shape == (25, 4)
    assert set(Counter(order.flatten().tolist()).values()) == {2}
    assert (order == rows.order("toy@full#0", steps=25, batch_size=4)).all()
    assert (order != rows.order("toy@full#1", steps=25, batch_size=4)).any()


def test_batches_hold_rows_of_like_length(rows: Rows) -> None:
    lengths = torch.tensor([len(ids) for ids in rows.ids])
    order = torch.tensor(rows.order("toy@full#0", steps=8, batch_size=4))
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:32].view(8, 4)
    spread = [(lengths[o].amax(1) - lengths[o].amin(1)).float().mean() for o in (order, shuffled)]
    assert spread[0] < spread[1] / 2


def test_fewer_rows_than_a_batch_come_again(tiny: TextBackbone) -> None:
    few = make_rows(tiny, KIND, make_task("toy", 2, 4))
    assert set(Counter(few.order("toy@2#0", steps=1, batch_size=8).flatten().tolist()).values()) == {2}


@pytest.mark.parametrize("keep", [True, False])
def test_cached_trunk_outputs_equal_the_whole_pass(tiny: TextBackbone, keep: bool) -> None:
    rows = make_rows(tiny, KIND, make_task("toy", 3, 20), keep=keep)
    expected = tiny.embed([example.text for example in make_task("toy", 3, 20).splits["train"]])
    for chosen in ([3, 1, 19], [1, 1, 5], [19, 3]):  # cached, repeated and new ones
        found = tiny(rows.inputs(chosen), rows.first)
        torch.testing.assert_close(found, expected[chosen], atol=1e-6, rtol=1e-5)


def test_the_trunk_runs_once_per_kept_row(tiny: TextBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    trunk = TextBackbone.trunk
    monkeypatch.setattr(TextBackbone, "trunk", lambda self, i, first: ran.append(len(i.ids)) or trunk(self, i, first))
    rows = make_rows(tiny, KIND, make_task("toy", 3, 20))
    rows.inputs([0, 1, 1])
    rows.inputs([1, 2])
    assert ran == [2, 1]
    monkeypatch.setattr(examples, "CACHE_BYTES", 0)
    large = make_rows(tiny, KIND, make_task("toy", 3, 20))
    large.inputs([0])
    large.inputs([0])
    assert ran == [2, 1, 1, 1]  # too many to keep


def test_packed_scores_and_losses_equal_each_tasks_own(tiny: TextBackbone) -> None:
    parts = [make_rows(tiny, KIND, make_task(name, classes, 12)) for name, classes in (("a", 2), ("b", 5), ("c", 3))]
    chosen = [[0, 5], [3, 4], [7, 7]]
    logits = label_logits(
        tiny(collate(list(zip(parts, chosen, strict=True))), parts[0].first), *stack_candidates(parts), 10.0
    )
    labels = torch.stack([part.labels[rows] for part, rows in zip(parts, chosen, strict=True)])
    losses = group_losses(logits, labels)
    assert logits.shape == (3, 2, 5)
    for index, (part, picked) in enumerate(zip(parts, chosen, strict=True)):
        classes = len(part.candidates)
        own = 10.0 * tiny(part.inputs(picked), part.first) @ part.candidates.T
        torch.testing.assert_close(logits[index, :, :classes], own, atol=1e-5, rtol=1e-5)
        assert (logits[index, :, classes:] == -torch.inf).all()
        torch.testing.assert_close(losses[index], nn.functional.cross_entropy(own, part.labels[picked]))


def test_candidates_are_the_frozen_backbones(tiny: TextBackbone) -> None:
    task = make_task("toy", 4, 8)
    assert torch.equal(make_rows(tiny, KIND, task).candidates, tiny.embed(task.label_texts))


def test_by_length(rows: Rows) -> None:
    lengths = [len(rows.ids[row]) for row in rows.by_length()]
    assert lengths == sorted(lengths) and len(lengths) == 50
