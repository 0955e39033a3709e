"""The queue of packs, without Ray."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from pitune.runtime.queue import PREEMPTIONS, WAIT, Queue


@dataclass(frozen=True)
class Pack:
    name: str


def queue(count: int, tries: int = 2, closed: bool = True) -> Queue[Pack]:
    made = Queue[Pack](tries)
    made.add([Pack(f"p{index}") for index in range(count)])
    if closed:
        made.close()
    return made


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
    assert packs.snapshot().done == {"p0": {}}
    assert not packs.snapshot().failed


def test_a_gang_may_not_start_for_ever() -> None:
    packs = queue(2, tries=2)
    assert packs.enter("a")
    assert packs.enter("a")
    assert not packs.enter("a")
    assert packs.snapshot().errors == {"a": "its workers died 2 times in a row"}


def test_it_tells_how_often_a_gang_has_got_further() -> None:
    packs = queue(2)
    packs.claim("a")
    packs.lost("a")
    assert not packs.snapshot().further.get("a")
    packs.claim("a")
    packs.progress("a", "p0", 1, 9)
    packs.progress("a", "p0", 1, 9)
    assert packs.snapshot().further == {"a": 1}
    packs.done("p0")
    assert packs.snapshot().further == {"a": 2}


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
    packs.progress("a", "p0", 1, 4)
    packs.progress("a", "p1", 3, 4)  # late news of a pack that it does not hold
    shot = packs.snapshot()
    assert (shot.total, shot.waiting, shot.done) == (4, 3, {})
    assert [(one.pack, one.gang, one.step, one.steps) for one in shot.running] == [("p0", "a", 1, 4)]


def test_an_open_queue_has_gangs_wait_for_more() -> None:
    packs = queue(0, closed=False)
    assert packs.claim("a") == WAIT
    packs.add([Pack("late")])
    assert packs.claim("a") == Pack("late")
    packs.done("late", {"experts/x": "its loss is nan"})
    assert packs.claim("a") == WAIT
    packs.close()
    assert packs.claim("a") is None
    assert packs.snapshot().done == {"late": {"experts/x": "its loss is nan"}}


def test_a_pack_that_is_there_is_not_taken_twice() -> None:
    packs = queue(1)
    packs.claim("a")
    packs.done("p0")
    packs.add([Pack("p0")])
    assert packs.claim("a") is None
    assert packs.snapshot().total == 1


def test_a_pack_that_gets_further_each_time_is_not_at_fault() -> None:
    packs = queue(1)
    for step in range(1, 20):
        assert packs.enter("a")
        assert packs.claim("a") == Pack("p0")
        packs.progress("a", "p0", 10 * step, 1000)
    packs.progress("a", "p0", 10, 1000)  # started again, and no further than it was
    assert packs.claim("a") == Pack("p0")
    assert packs.claim("a") is None
    assert packs.snapshot().failed == {"p0": "its workers died 2 times while training it"}


def test_the_first_error_of_a_dying_gang_is_told() -> None:
    packs = queue(1)
    packs.claim("a")
    packs.stumbled("a", "ValueError: the cause")
    packs.stumbled("a", "RuntimeError: connection closed by peer")
    packs.claim("a")
    packs.claim("a")
    assert packs.snapshot().failed["p0"].endswith("(last: ValueError: the cause)")


def test_a_queue_that_has_forgotten_is_filled_again() -> None:
    packs = queue(0, closed=False)
    packs.done("p0")  # a gang that did not notice
    packs.failed("p1", "it was bad")
    packs.progress("a", "p2", 3, 4)
    packs.add([Pack(f"p{index}") for index in range(4)], held={"p2": "a"})
    assert packs.claim("b") == Pack("p3")
    assert packs.claim("a") == Pack("p2")
    shot = packs.snapshot()
    assert (list(shot.done), shot.failed) == (["p0"], {"p1": "it was bad"})
    assert shot.life != queue(0).snapshot().life


def test_parts_take_the_place_of_what_did_not_fit() -> None:
    packs = queue(2)
    assert packs.claim("a") == Pack("p0")
    packs.split("p0", [Pack("p0-1"), Pack("p0-2")])
    packs.split("p0", [Pack("late")])  # another worker of the gang
    packs.split("unknown", [Pack("late")])
    found = packs.snapshot()
    assert (found.total, found.waiting, found.running) == (3, 3, ())
    assert found.split == {"p0": [Pack("p0-1"), Pack("p0-2")]}
    assert [packs.claim(gang) for gang in "abc"] == [Pack("p1"), Pack("p0-1"), Pack("p0-2")]
    packs.split("p0-1", [Pack("p0-1-1"), Pack("p0-1-2")])
    assert packs.claim("b") == Pack("p0-1-1")
    assert not packs.snapshot().failed


def test_a_gang_whose_packs_do_not_fit_may_start_as_often_as_it_takes() -> None:
    packs = queue(1, tries=2)
    name = "p0"
    for _ in range(4):
        assert packs.enter("a")
        claimed = packs.claim("a")
        assert claimed == Pack(name)
        name = f"{name}-1"
        packs.split(claimed.name, [Pack(name)])
    assert packs.enter("a") and packs.claim("a") == Pack(name)


def test_a_gang_that_has_gone_on_does_not_hold_what_it_held_before() -> None:
    packs = queue(1, closed=False)
    assert packs.claim("a") == Pack("p0")
    packs.add([Pack("p1")], held={"p1": "a"})
    assert packs.claim("b") == Pack("p1")
    assert [(one.pack, one.gang) for one in packs.snapshot().running] == [("p0", "a"), ("p1", "b")]


def test_a_machine_that_is_taken_away_counts_against_nobody() -> None:
    packs = queue(1)
    for _ in range(20):
        assert packs.enter("a") and packs.claim("a") == Pack("p0")
        packs.preempted("a")
    packs.lost("a")  # there is no room for it any more
    for _ in range(2):
        assert packs.enter("b") and packs.claim("b") == Pack("p0")  # two deaths of its own, as ever
    assert packs.enter("a") and packs.claim("b") is None
    assert packs.snapshot().failed == {"p0": "its workers died 2 times while training it"}


def test_nothing_is_taken_away_for_ever() -> None:
    packs = queue(1)
    for _ in range(PREEMPTIONS):
        assert packs.enter("a") and packs.claim("a") == Pack("p0")
        packs.preempted("a")
    for _ in range(2):
        assert packs.enter("a") and packs.claim("a") == Pack("p0")
        packs.preempted("a")
    assert not packs.enter("a")
    assert packs.snapshot().failed == {"p0": "its workers died 2 times while training it"}


class Plain:
    """The queue as one would write it down: every question looks through all packs."""

    def __init__(self, count: int, tries: int) -> None:
        self.tries = tries
        self.state = {f"p{index}": "waiting" for index in range(count)}
        self.begun = dict.fromkeys(self.state, 0)

    def lost(self, gang: str) -> str | None:
        held = next((pack for pack, state in self.state.items() if state == gang), None)
        if held is not None:
            self.state[held] = "failed" if self.begun[held] >= self.tries else "waiting"
        return held

    def claim(self, gang: str) -> str | None:
        held = self.lost(gang)
        waiting = [pack for pack, state in self.state.items() if state == "waiting"]
        if waiting:
            chosen = held if held in waiting else waiting[0]
            self.state[chosen], self.begun[chosen] = gang, self.begun[chosen] + 1
            return chosen
        return None if set(self.state.values()) <= {"done", "failed"} else WAIT

    def end(self, pack: str, how: str) -> None:
        if how == "done" or self.state[pack] not in ("done", "failed"):
            self.state[pack] = how


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_a_plain_queue(seed: int) -> None:
    chance = random.Random(seed)
    packs, plain = queue(12), Plain(12, tries=2)
    for _ in range(100):
        gang, pack = f"gang{chance.randrange(4)}", f"p{chance.randrange(12)}"
        match chance.choice(["claim"] * 6 + ["lost", "done", "failed"]):
            case "claim":
                found = packs.claim(gang)
                assert (found.name if isinstance(found, Pack) else found) == plain.claim(gang)
            case "lost":
                packs.lost(gang)
                plain.lost(gang)
            case "done":
                packs.done(pack)
                plain.end(pack, "done")
            case "failed":
                packs.failed(pack, "it was bad")
                plain.end(pack, "failed")
        shot, states = packs.snapshot(), plain.state.items()
        assert {one.pack: one.gang for one in shot.running} == {p: s for p, s in states if s.startswith("gang")}
        assert set(shot.done) == {p for p, s in states if s == "done"}
        assert set(shot.failed) == {p for p, s in states if s == "failed"}
        assert shot.waiting == sum(s == "waiting" for _, s in states)
