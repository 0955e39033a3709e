"""The queue of packs, without Ray."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pitune.runtime.queue import WAIT, Queue


@dataclass(frozen=True)
class Pack:
    name: str


def queue(count: int, tries: int = 2) -> Queue[Pack]:
    return Queue([Pack(f"p{index}") for index in range(count)], tries)


def test_packs_are_given_out_in_order_and_then_none() -> None:
    packs = queue(2)
    assert packs.claim("a") == Pack("p0")
    packs.done("p0")
    assert packs.claim("a") == Pack("p1")
    packs.done("p1")
    assert packs.claim("a") is None


def test_a_gang_waits_while_another_works_on_the_last_pack() -> None:
    packs = queue(1)
    packs.claim("a")
    assert packs.claim("b") == WAIT
    packs.lost("a")
    assert packs.claim("b") == Pack("p0")


def test_a_restarted_gang_reclaims_its_pack() -> None:
    packs = queue(3)
    assert packs.claim("a") == Pack("p0")
    assert packs.claim("b") == Pack("p1")
    assert packs.claim("a") == Pack("p0")


def test_a_pack_that_kills_its_gang_too_often_fails_and_the_gang_goes_on() -> None:
    packs = queue(2)
    assert packs.claim("a") == Pack("p0")
    assert packs.claim("a") == Pack("p0")
    assert packs.claim("a") == Pack("p1")
    assert packs.snapshot().failed == {"p0": "its workers died 2 times while training it"}


def test_a_failed_pack_is_not_tried_again_and_keeps_its_first_error() -> None:
    packs = queue(2)
    packs.claim("a")
    packs.failed("p0", "first")
    packs.failed("p0", "second")
    assert packs.claim("a") == Pack("p1")
    assert packs.snapshot().failed == {"p0": "first"}


def test_what_is_done_stays_done() -> None:
    packs = queue(1)
    packs.claim("a")
    packs.done("p0")
    packs.failed("p0", "late")
    packs.lost("a")
    assert packs.snapshot().done == 1
    assert not packs.snapshot().failed


def test_a_gang_may_not_start_for_ever() -> None:
    packs = queue(2, tries=2)
    assert packs.enter("a")
    assert packs.enter("a")
    assert not packs.enter("a")
    assert packs.snapshot().errors == {"a": "its workers died 2 times in a row"}


def test_a_gang_that_finishes_packs_may_start_again() -> None:
    packs = queue(3, tries=2)
    for name in ("p0", "p1", "p2"):
        assert packs.enter("a")
        packs.claim("a")
        packs.done(name)
    assert packs.enter("a")


def test_a_rejected_gang_may_not_start_again() -> None:
    packs = queue(1)
    assert packs.enter("a")
    packs.reject("a", "no backbone")
    assert not packs.enter("a")
    packs.abandon("nobody left")
    assert packs.snapshot().failed == {"p0": "nobody left"}


def test_the_snapshot_says_how_far() -> None:
    packs = queue(4)
    packs.claim("a")
    packs.progress("a", 1, 4)
    shot = packs.snapshot()
    assert (shot.total, shot.waiting, shot.done) == (4, 3, 0)
    assert [(one.pack, one.gang, one.step, one.steps) for one in shot.running] == [("p0", "a", 1, 4)]


def test_two_packs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Queue([Pack("p"), Pack("p")])
