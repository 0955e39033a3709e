"""The rows of an expert: their order, and what of them runs once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tinymodel import MATCH, embed, make_rows, make_task

from pitune.backbones import base, cache
from pitune.backbones.text import TextBackbone
from pitune.objectives import Rows


@pytest.fixture(scope="module")
def rows(tiny: TextBackbone) -> Rows:
    return make_rows(tiny, make_task("toy", 3, 50))


def test_the_order_is_the_names_and_takes_every_row_once_an_epoch(rows: Rows) -> None:
    order = rows.order("toy@full#0", steps=25, batch_size=4)
    assert order.shape == (25, 4)
    assert set(Counter(order.flatten().tolist()).values()) == {2}
    assert (order == rows.order("toy@full#0", steps=25, batch_size=4)).all()
    assert (order != rows.order("toy@full#1", steps=25, batch_size=4)).any()


def test_the_order_is_what_it_has_always_been(rows: Rows) -> None:
    """Published scores depend on it."""
    assert rows.order("toy@full#0", steps=2, batch_size=3).tolist() == [[35, 40, 8], [15, 37, 11]]


def test_batches_hold_rows_of_like_cost(rows: Rows) -> None:
    costs = torch.tensor([row.encoded.cost for row in rows.rows])
    order = torch.tensor(rows.order("toy@full#0", steps=8, batch_size=4))
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:32].view(8, 4)
    spread = [(costs[o].amax(1) - costs[o].amin(1)).float().mean() for o in (order, shuffled)]
    assert spread[0] < spread[1] / 2


def test_fewer_rows_than_a_batch_come_again(tiny: TextBackbone) -> None:
    few = make_rows(tiny, make_task("toy", 2, 4))
    assert set(Counter(few.order("toy@2#0", steps=1, batch_size=8).flatten().tolist()).values()) == {2}


def test_several_slices_come_by_their_weights_each_once_an_epoch(tiny: TextBackbone) -> None:
    tasks = [make_task("a", 2, 20), make_task("b", 3, 30)]
    rows = Rows(
        tiny, MATCH, [(task, task.splits["train"], weight) for task, weight in zip(tasks, (1.0, 3.0), strict=True)]
    )
    order = rows.order("a+b", steps=100, batch_size=8).flatten().tolist()
    share = sum(row >= 20 for row in order) / 800
    assert share == pytest.approx(0.75, abs=0.05)
    for part in (range(20), range(20, 50)):
        counts = Counter(row for row in order if row in part)
        assert len(counts) == len(part) and max(counts.values()) - min(counts.values()) <= 1
    assert order == rows.order("a+b", steps=100, batch_size=8).flatten().tolist()


@pytest.mark.parametrize("again", [True, False])
def test_what_runs_once_equals_the_whole_pass(tiny: TextBackbone, again: bool) -> None:
    task = make_task("toy", 3, 20)
    rows = make_rows(tiny, task, again=again)
    expected = embed(tiny, [example.text for example in task.splits["train"]])
    for firsts in ({"text": 1}, {"text": 2}, {}):
        for chosen in ([3, 1, 19], [1, 1, 5], [19, 3]):  # kept, repeated and new ones
            found = tiny(tiny.inputs([row.encoded for row in rows.take(chosen)], firsts))
            torch.testing.assert_close(found, expected[chosen], atol=1e-6, rtol=1e-5)


def test_the_trunk_runs_once_per_content_and_the_cache_is_bounded(
    tiny: TextBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    below = TextBackbone._below

    def counting(self: TextBackbone, inputs: base.Inputs, first: int) -> torch.Tensor:
        ran.append(len(inputs.tensors["input_ids"]))
        return below(self, inputs, first)

    monkeypatch.setattr(TextBackbone, "_below", counting)
    kept = cache.FrozenCache(1 << 20)
    monkeypatch.setattr(cache, "CACHE", kept)
    texts = ["w1 w2", "w3", "w1 w2", "w4 w5 w6"]
    one, other = (tiny.encode_texts(texts) for _ in range(2))  # as two slices with the same text have it
    tiny.inputs(one[:3], {"text": 1})
    tiny.inputs(other[1:], {"text": 1})
    assert ran == [2, 1]
    assert kept.bytes == sum(4 * 32 * row.cost for row in (one[0], one[1], one[3]))

    small = cache.FrozenCache(4 * 32 * 7)
    monkeypatch.setattr(cache, "CACHE", small)
    tiny.inputs(one, {"text": 1})
    assert 0 < small.bytes <= small.most
    tiny.inputs(one, {"text": 1})
    assert ran[2:] == [3, ran[-1]] and ran[-1] > 0  # what had to make room is computed again


def test_by_cost(rows: Rows) -> None:
    costs = [rows.rows[row].encoded.cost for row in rows.by_cost()]
    assert costs == sorted(costs) and len(costs) == 50
