"""What a gang's controller tells the queue: which deaths were a machine's, and when others may have its pack."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, RunningState
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from pitune.runtime import controller
from pitune.runtime.controller import Registration

DIED = RestartingState(WorkerGroupError("connection closed by peer", {1: RuntimeError("connection closed by peer")}))
WARNED = RestartingState(PreemptionError(PreemptionInfo(None, {"one": [0]})))
NO_ROOM = ReschedulingState(ControllerError(TimeoutError("no room")))


class Gang:
    """A registration, the machines that are alive, and what the queue was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive = {"one", "two"}
        self.told: list[str] = []
        monkeypatch.setattr(controller.ray, "get", lambda found: found)
        monkeypatch.setattr(controller.ray, "nodes", lambda: [{"NodeID": one} for one in ("one", "two", "other")])
        monkeypatch.setattr(controller, "_is_there", lambda node: node["NodeID"] in self.alive)
        queue: Any = SimpleNamespace(
            **{name: SimpleNamespace(remote=lambda *given, name=name: self.told.append(name)) for name in NAMES}
        )
        self.registration = Registration(queue, "gang", "run-gang-")

    def starts_on(self, machines: Sequence[str]) -> None:
        workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=machine)) for machine in machines]
        self.registration.after_worker_group_start(SimpleNamespace(get_workers=lambda: workers))

    def comes_to(self, state: object) -> None:
        self.registration.after_controller_state_update(RunningState(), state)


NAMES = ("register", "preempted", "lost")


@pytest.fixture
def gang(monkeypatch: pytest.MonkeyPatch) -> Gang:
    made = Gang(monkeypatch)
    made.starts_on(["one", "two"])
    assert not made.told
    return made


def test_a_death_on_machines_that_live_is_a_death(gang: Gang) -> None:
    gang.comes_to(DIED)
    gang.starts_on(["two"])
    assert not gang.told


def test_a_machine_that_is_gone_by_the_next_start_is_told_of_once(gang: Gang) -> None:
    gang.comes_to(DIED)  # what the survivor saw; the machine's end is known later
    gang.alive = {"two"}
    gang.starts_on(["two"])
    gang.comes_to(DIED)
    gang.starts_on(["two"])
    assert gang.told == ["preempted"]


def test_a_machine_that_does_not_answer_is_gone_whatever_ray_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as raylet:
        node = {"Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": raylet.getsockname()[1]}
        assert controller._is_there(node) and not controller._is_there(node | {"Alive": False})
    assert not controller._is_there(node)


def test_a_machine_that_goes_as_was_warned_of_is_told_of_while_it_lives(gang: Gang) -> None:
    gang.comes_to(WARNED)
    gang.starts_on(["two"])
    assert gang.told == ["preempted"]


def test_a_gang_without_room_gives_its_pack_back(gang: Gang) -> None:
    gang.alive = {"two"}
    gang.comes_to(DIED)
    for _ in range(3):
        gang.comes_to(NO_ROOM)
    assert gang.told == ["preempted", "lost", "lost", "lost"]
