"""The lane of gangs on a real, local Ray: what comes and goes while it is open, and whose fault an error is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
import torch
import torch.distributed as dist
from toygangs import Pack, settings, storage, work
from toylanes import Node, wait_for

from pitune.errors import OutOfMemory, PituneError
from pitune.runtime import gangs, worker
from pitune.runtime.gangs import GangLane, Gangs
from pitune.runtime.lane import name_of
from pitune.runtime.queue import TRIES, Parcel, Queue
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.worker import is_packs_fault
from pitune.store import Job

slow = pytest.mark.slow


def node(name: str) -> Node:
    return Node(Job((name,), {"makes": name}))


def pairs(jobs: Sequence[Job]) -> list[Pack]:
    """Two jobs a pack, named after the first; what a name says, its pack does. Those that do not die train nothing."""
    packs = []
    for start in range(0, len(jobs), 2):
        part = tuple(jobs[start : start + 2])
        name = part[0].artifacts[0]
        error, sleep = "clear" if name == "bad" else "", 3.0 if name.startswith("long") else 0.0
        mortal = name.startswith("mortal")
        packs.append(Pack(name, sleep=sleep, trains=mortal, error=error, jobs=part, kill_rank=1 if mortal else None))
    return packs


@slow
@pytest.mark.kill
def test_a_lane_serves_all_that_comes_and_outlives_its_queue(ray_session: None, tmp_path: Path) -> None:
    made = work(tmp_path)
    began = time.monotonic()
    with GangLane[Node](made, pairs, settings(), storage(tmp_path)) as lane:
        assert time.monotonic() - began < 5  # nobody waits for a gang
        assert lane.finished() == [] and lane.unfinished() == 0
        lane.add([node(name) for name in ("bad", "bad2", "a", "sick")])
        assert lane.unfinished() == 4
        assert wait_for(lane, 4, 180) == {"bad": "clear", "bad2": "clear", "a": None, "sick": "its loss is nan"}
        lane.add([node(name) for name in ("long1", "long2", "b", "c")])
        while not lane.running():
            lane.finished()
        assert set(lane.running()) == {"long1", "long2"}
        ray.kill(lane._gangs._queue, no_restart=False)
        assert wait_for(lane, 4, 180) == dict.fromkeys(("long1", "long2", "b", "c"))
        assert lane.unfinished() == 0 and not lane.running()
        assert len(made.notes("open")) == 1  # one gang, warm from the first to the last
        for turn in range(TRIES):
            lane.add([node(f"long-{turn}")])
            while not lane.running():
                lane.finished()
            controllers = lane._gangs.snapshot().controllers
            ray.kill(lane._gangs._queue, no_restart=False)  # it forgets the gang, its room, and what it has done
            for controller in controllers.values():
                ray.kill(controller)
            lane.add([node(f"d-{turn}")])
            assert wait_for(lane, 2, 180) == {f"long-{turn}": None, f"d-{turn}": None}
    assert len(made.notes("open")) == 1 + TRIES
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


class Called:
    """A queue whose methods are called as an actor's are, in this process."""

    def __init__(self, queue: Queue[Parcel]) -> None:
        self.queue = queue

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.queue, name))


def test_gangs_join_one_by_one_where_there_is_room_and_packs_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without Ray: gangs that do nothing, on a cluster that is told to have room for so many."""
    queue = Queue[Parcel]()
    room = 2
    monkeypatch.setattr(gangs, "check_room", lambda settings: None)
    monkeypatch.setattr(gangs, "gang_count", lambda settings, most: 1)
    monkeypatch.setattr(gangs, "has_room", lambda settings, count: count < room)
    monkeypatch.setattr(gangs, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(gangs, "key_of", lambda storage: b"")
    monkeypatch.setattr(gangs, "PackQueue", SimpleNamespace(options=lambda **options: options_of(queue)))
    monkeypatch.setattr(gangs.ray, "get", lambda found: found)
    monkeypatch.setattr(gangs.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0" * 56))
    monkeypatch.setattr(
        gangs, "Gang", lambda name, *rest: SimpleNamespace(name=name, error="", is_alive=bool, heard=bool)
    )
    made = Gangs(Any, RuntimeSettings(), "nowhere", most=4)
    alive = made._gangs

    def look() -> int:
        for gang in made._gangs:
            gang.is_alive = lambda gang=gang: gang in alive  # type: ignore[assignment, misc]
        made.snapshot()
        return len(made._gangs)

    assert look() == 1  # no pack waits
    made.add([Pack(f"p{index}") for index in range(9)])
    assert [look(), look()] == [2, 2]  # as many as there is room for
    room = 9
    assert [look(), look(), look()] == [3, 4, 4]  # as many as are of use
    alive = made._gangs[:1]
    for index in range(1, 4):
        queue.reject(f"gang{index}", "backbone x: is not there")
    assert look() == 4  # three have broken down
    alive = []
    assert look() == 4 and len(queue.snapshot().failed) == 9


def options_of(queue: Queue[Parcel]) -> Any:
    return SimpleNamespace(remote=lambda: Called(queue))


def test_a_lane_follows_a_pack_into_its_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray: one worker, whose memory holds one job."""
    monkeypatch.setattr(worker.ray, "get", lambda found: found)
    queue = Queue[Parcel]()

    def train(pack: Pack, seat: object) -> dict[str, str]:
        if len(pack.jobs) > 1 or pack.name == "large-2-2":
            raise OutOfMemory(f"{pack.name} does not fit")
        return {job.artifacts[0]: "its loss is nan" for job in pack.jobs if job.artifacts[0] == "sick"}

    lane = GangLane[Node](Any, lambda jobs: [Pack("large", jobs=tuple(jobs))], settings(), "nowhere")
    lane._gangs = cast(
        Gangs, SimpleNamespace(add=lambda packs: queue.add([*map(Parcel.of, packs)]), snapshot=queue.snapshot)
    )
    lane.add([node(name) for name in ("a", "sick", "b", "c")])
    queue.close()
    ended: dict[str, str | None] = {}
    starts = 0
    while isinstance(parcel := queue.claim("gang"), Parcel):
        seat: Any = SimpleNamespace(take=lambda name: None, rank=0, world_size=1)
        try:
            worker._train(parcel.opened(), SimpleNamespace(train=train), seat, Called(queue))
        except OutOfMemory:
            starts += 1
        if starts != 2:  # a lane may look seldom, and find halves of halves
            ended |= {name_of(one): error for one, error in lane.finished()}
    assert ended == {"a": None, "sick": "its loss is nan", "b": None, "c": "large-2-2 does not fit"}
    assert starts == 4 and lane.unfinished() == 0 and not lane.running()


@slow
def test_what_does_not_fit_comes_again_in_halves(ray_session: None, tmp_path: Path) -> None:
    """In one of a gang's workers, while the other waits for it."""

    def packs(jobs: Sequence[Job]) -> list[Pack]:
        return [Pack("large", jobs=tuple(jobs[:2]), room=1), Pack("hopeless", jobs=tuple(jobs[2:]), room=0)]

    made = work(tmp_path)
    with GangLane[Node](made, packs, settings(workers=2), storage(tmp_path)) as lane:
        lane.add([node(name) for name in ("a", "sick", "b")])
        lane.close()  # nothing else will come, and the halves all the same
        assert wait_for(lane, 3, 400) == {"a": None, "sick": "its loss is nan", "b": "hopeless does not fit"}
    assert {"large-1", "large-2"} <= {str(note["pack"]) for note in made.notes("begun")}
    assert not (tmp_path / "results" / "large.json").exists()


@slow
@pytest.mark.kill
def test_the_survivor_of_a_killed_worker_does_not_fail_the_pack(ray_session: None, tmp_path: Path) -> None:
    with GangLane[Node](work(tmp_path), pairs, settings(workers=2), storage(tmp_path)) as lane:
        lane.add([node(f"mortal{index}") for index in range(4)])
        assert wait_for(lane, 4, 400) == {f"mortal{index}": None for index in range(4)}
    assert (tmp_path / "results" / "mortal0-died").exists()


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (PituneError("expert x: the loss is nan"), True),
        (ValueError("a bug"), True),
        (RuntimeError("shape mismatch"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (dist.DistBackendError("NCCL error"), False),
        (dist.DistNetworkError("recvValue failed"), False),
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:40000"), False),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Read error: Connection reset by peer"), False),
        (RuntimeError("[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete"), False),
        (ConnectionResetError("peer"), False),
        (ray.exceptions.ActorDiedError(), False),
    ],
)
def test_only_a_packs_own_fault_fails_it(error: Exception, fault: bool) -> None:
    assert is_packs_fault(error, workers=2) is fault


def test_an_error_amid_the_handling_of_a_lost_worker_is_not_the_packs() -> None:
    try:
        try:
            raise dist.DistBackendError("gone")
        except RuntimeError:
            raise KeyError("clean-up") from None
    except KeyError as error:
        assert not is_packs_fault(error, workers=2)
