"""The lane of tasks: what is made together, and what comes of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toylanes import Node, wait_for

from pitune.errors import PituneError
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.tasks import TaskLane, calls
from pitune.store import Job


def node(name: str, cost: float = 1.0, together: str | None = None, make: Any = None) -> Node:
    return Node(Job((name,), {"makes": name}), cost, make, together)


def names(found: Sequence[Sequence[Node]]) -> list[list[str]]:
    return [[one.job.artifacts[0] for one in group] for group in found]


def test_what_nothing_holds_up_comes_first_and_the_most_work_first() -> None:
    group = [node(f"g{i}", together="movie") for i in range(12)]
    assert names(calls([*group, node("small"), node("large", 2.0)], partial=False)) == [
        ["large"],
        ["small"],
        [f"g{i}" for i in range(12)],
    ]


def test_groups_that_are_not_full_wait() -> None:
    waiting = [node(f"a{i}", together="a") for i in range(13)] + [node(f"b{i}", 9.0, "b") for i in range(2)]
    assert names(calls(waiting, partial=False)) == [[f"a{i}" for i in range(12)]]
    assert names(calls(waiting, partial=True)) == [
        ["b0", "b1"],
        [f"a{i}" for i in range(7)],
        [f"a{i}" for i in range(7, 13)],
    ]


@dataclass(frozen=True)
class Toys:
    """Materials that are a folder."""

    folder: Path


def write(toys: Toys, job: Job) -> None:
    name = job.artifacts[0]
    if name == "bad":
        raise PituneError("bad: is bad")
    if name == "mortal" and not (toys.folder / "died").exists():
        (toys.folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (toys.folder / name).write_text(str(os.getpid()))


def write_all(toys: Toys, jobs: Sequence[Job]) -> None:
    for job in jobs:
        (toys.folder / job.artifacts[0]).write_text(f"{len(jobs)}")


def linger(toys: Toys, job: Job) -> None:
    (toys.folder / f"{job.artifacts[0]}-begun").touch()
    time.sleep(300)


@pytest.mark.slow
def test_tasks_end_with_their_own_errors(ray_session: None, tmp_path: Path) -> None:
    with TaskLane[Node](Toys(tmp_path), RuntimeSettings()) as lane:
        lane.add([node(name, make=write) for name in ("bad", "mortal", "well", "good")])
        assert len(lane.running()) == 2 and lane.unfinished() == 4  # two CPUs
        assert wait_for(lane, 4, 90) == {"bad": "bad: is bad", "mortal": None, "well": None, "good": None}
        assert lane.unfinished() == 0 and not lane.running()
    assert all((tmp_path / name).exists() for name in ("mortal", "well", "good"))


@pytest.mark.slow
def test_a_part_of_a_group_waits_until_it_is_told_not_to(ray_session: None, tmp_path: Path) -> None:
    with TaskLane[Node](Toys(tmp_path), RuntimeSettings()) as lane:
        lane.add([node(f"p{i}", together="p", make=write_all) for i in range(14)])
        assert len(wait_for(lane, 12, 90)) == 12
        assert not lane.running() and lane.unfinished() == 2
        lane.flush()
        assert len(wait_for(lane, 2, 90)) == 2
        lane.add([node("late", together="p", make=write_all)])  # flushing was for what was there
        assert not lane.running() and lane.unfinished() == 1
    assert [(tmp_path / f"p{i}").read_text() for i in range(14)] == ["12"] * 12 + ["2"] * 2


@pytest.mark.slow
def test_leaving_the_lane_ends_its_tasks(ray_session: None, tmp_path: Path) -> None:
    import ray

    with TaskLane[Node](Toys(tmp_path), RuntimeSettings()) as lane:
        lane.add([node("long", make=linger)])
        while not (tmp_path / "long-begun").exists():
            time.sleep(0.05)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2
