"""Gangs on a real, local Ray: results, failures, deaths, interruption."""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
import torch
import torch.distributed as dist
from torch import nn

from pitune.errors import PituneError
from pitune.runtime.gangs import GangLane, run_packs
from pitune.runtime.queue import Snapshot
from pitune.runtime.room import check_room
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.worker import GangSeat, is_packs_fault
from pitune.signals import stoppable
from pitune.store import Job

slow = pytest.mark.slow
ROWS, WIDTH, EXPERTS, STEPS = 8, 4, 2, 6


@dataclass(frozen=True)
class Pack:
    name: str
    zero_stage: Literal[0, 1, 2, 3] = 2
    die_at: int | None = None
    sleep: float = 0.0
    error: str = ""
    jobs: tuple[Job, ...] = ()
    kill_rank: int | None = None  # this one is killed at step 3, the first time


class Bank(nn.Module):
    """A frozen layer and E trainable ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        frozen: torch.Tensor = self.base(rows)
        return frozen @ self.weight


@dataclass
class Work:
    """Trains a small bank and writes what it saw into ``folder``."""

    folder: Path
    refuse: bool = False

    def open(self, seat: GangSeat) -> None:
        if self.refuse:
            raise PituneError("backbone x: is not there")
        self._note("open", {"rank": seat.rank, "threads": torch.get_num_threads()})

    def train(self, pack: Pack, seat: GangSeat) -> dict[str, str]:
        from pitune.training.engine import Engine, EngineSettings

        if pack.error and seat.rank == seat.world_size - 1:
            raise PituneError(pack.error) if pack.error == "clear" else ValueError(pack.error)
        self._note("begun", {"pack": pack.name})
        time.sleep(pack.sleep)
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(STEPS, EXPERTS, ROWS, WIDTH, generator=generator)
        folder = seat.resume()
        with Engine(Bank(), EngineSettings(pack.zero_stage), experts=EXPERTS) as engine:
            first = 0
            if folder is not None:
                engine.load(folder)
                first = json.loads((folder / "step.json").read_text())
            losses = []
            for step in range(first, STEPS):
                if pack.die_at == step and folder is None:
                    time.sleep(2)  # Ray Train takes note of a reported checkpoint within its health check interval
                    os.kill(os.getpid(), signal.SIGKILL)
                died = self.folder / f"{pack.name}-died"
                if seat.rank == pack.kill_rank and step == 3 and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                engine.set_learning_rate(0.05)
                loss = (engine(rows[step][:, seat.rank :: seat.world_size]) ** 2).mean((1, 2))
                engine.backward(loss)
                engine.step()
                losses.append(engine.mean_over_workers(loss).tolist())
                seat.progress(step + 1, STEPS)
                if pack.die_at is not None:
                    seat.checkpoint(lambda where, done=step + 1: self._save(engine, where, done), step + 1)  # type: ignore[misc]
            weight = engine.gathered()["weight"].tolist()
        if seat.rank == 0:
            (self.folder / f"{pack.name}.json").write_text(
                json.dumps({"first": first, "losses": losses, "weight": weight})
            )
        return {job.artifacts[0]: "its loss is nan" for job in pack.jobs if job.artifacts[0].startswith("sick")}

    def result(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{name}.json").read_text()))

    def notes(self, kind: str) -> list[dict[str, float]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"{kind}-*"))]

    def _note(self, kind: str, what: dict[str, object]) -> None:
        (self.folder / f"{kind}-{time.time()}").write_text(json.dumps({**what, "at": time.time()}))

    @staticmethod
    def _save(engine: object, where: Path, step: int) -> None:
        engine.save(where)  # type: ignore[attr-defined]
        (where / "step.json").write_text(json.dumps(step))


def work(tmp_path: Path, refuse: bool = False) -> Work:
    folder = tmp_path / "results"
    folder.mkdir()
    return Work(folder, refuse)


def settings(workers: int = 1) -> RuntimeSettings:
    return RuntimeSettings(workers=workers, gangs=1)


def storage(tmp_path: Path) -> str:
    return str(tmp_path / "storage")


@pytest.fixture(scope="module")
def alone(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Ten good packs and two that fail, by one gang of one worker."""
    tmp_path = tmp_path_factory.mktemp("alone")
    made = work(tmp_path)
    packs = [Pack("bad", error="clear"), Pack("worse", error="two\nlines")] + [Pack(f"p{i}") for i in range(10)]
    seen: list[Snapshot] = []
    errors = run_packs(packs, made, settings(), storage(tmp_path), seen.append)
    assert errors["bad"] == "clear"
    assert errors["worse"].startswith("ValueError: two lines (test_gangs.py:")
    assert len(errors) == 2
    assert (seen[-1].total, len(seen[-1].done), seen[-1].waiting, len(seen[-1].failed)) == (12, 10, 0, 2)
    return made


@slow
def test_a_failed_pack_leaves_the_others_and_the_gang_alone(alone: Work) -> None:
    assert len(alone.notes("open")) == 1
    assert alone.notes("open")[0]["threads"] == 1
    assert all(alone.result(f"p{i}") == alone.result("p0") for i in range(10))


@slow
def test_orchestration_costs_less_than_a_second_a_pack(alone: Work) -> None:
    begun = [note["at"] for note in alone.notes("begun")]
    assert (begun[-1] - begun[0]) / (len(begun) - 1) < 1.0  # with an engine and six steps of training in it


@slow
def test_two_workers_train_like_one(alone: Work, tmp_path: Path) -> None:
    both = work(tmp_path)
    packs = [Pack("two", 2), Pack("three", 3)]
    assert run_packs(packs, both, settings(workers=2), storage(tmp_path)) == {}
    expected = alone.result("p0")
    for pack in packs:
        found = both.result(pack.name)
        torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(expected["losses"]))
        torch.testing.assert_close(
            torch.tensor(found["weight"]), torch.tensor(expected["weight"]), atol=1e-5, rtol=1e-4
        )


@slow
@pytest.mark.kill
def test_a_killed_worker_resumes_its_pack(alone: Work, tmp_path: Path) -> None:
    killed = work(tmp_path)
    assert run_packs([Pack("mortal", die_at=3), Pack("next")], killed, settings(), storage(tmp_path)) == {}
    found = killed.result("mortal")
    assert found["first"] in (1, 2, 3)  # the last checkpoint may not have been taken note of
    assert found["weight"] == alone.result("p0")["weight"]
    assert found["losses"] == alone.result("p0")["losses"][found["first"] :]
    assert killed.result("next") == alone.result("p0")


@slow
def test_a_backbone_that_does_not_load_fails_every_pack_in_one_line(ray_session: None, tmp_path: Path) -> None:
    errors = run_packs([Pack("p0"), Pack("p1")], work(tmp_path, refuse=True), settings(), storage(tmp_path))
    assert errors == dict.fromkeys(["p0", "p1"], "no gang is left to train it (backbone x: is not there)")


@slow
def test_an_interrupt_stops_the_gangs_at_once(ray_session: None, tmp_path: Path) -> None:
    interrupted: list[float] = []

    def watch(snapshot: Snapshot) -> None:
        if snapshot.running and not interrupted:
            interrupted.append(time.monotonic())
            threading.Timer(0.5, _thread.interrupt_main).start()

    with stoppable(), pytest.raises(KeyboardInterrupt):
        run_packs([Pack("long", sleep=300)], work(tmp_path), settings(), storage(tmp_path), watch)
    assert time.monotonic() - interrupted[0] < 10


@slow
def test_a_gang_that_does_not_fit_is_refused(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(PituneError, match="a gang of 9 takes 1 CPU for each worker, there is room for 2 on 1 machine"):
        run_packs([Pack("p0")], work(tmp_path), settings(workers=9), storage(tmp_path))


def test_no_packs_are_no_work(tmp_path: Path) -> None:
    assert run_packs([], work(tmp_path), settings(), storage(tmp_path)) == {}


# --- the lane ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    job: Job
    cost: float = 1.0
    make: None = None
    together: None = None


def node(name: str) -> Node:
    return Node(Job((name,), {"makes": name}))


def pairs(jobs: Sequence[Job]) -> list[Pack]:
    """Two jobs a pack, named after the first; what a name says, its pack does."""
    packs = []
    for start in range(0, len(jobs), 2):
        part = tuple(jobs[start : start + 2])
        name = part[0].artifacts[0]
        sleep = 3.0 if name.startswith("long") else 0.0
        kill = 1 if name.startswith("mortal") else None
        packs.append(Pack(name, error="clear" if name == "bad" else "", jobs=part, sleep=sleep, kill_rank=kill))
    return packs


def wait_for(lane: GangLane[Node], count: int, seconds: float = 180.0) -> dict[str, str | None]:
    ended: dict[str, str | None] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < count and time.monotonic() < deadline:
        ended |= {one.job.artifacts[0]: error for one, error in lane.finished()}
        time.sleep(0.05)
    return ended


@slow
@pytest.mark.kill
def test_a_lane_serves_all_that_comes_and_outlives_its_queue(ray_session: None, tmp_path: Path) -> None:
    made = work(tmp_path)
    began = time.monotonic()
    with GangLane[Node](made, pairs, settings(), storage(tmp_path)) as lane:
        assert time.monotonic() - began < 2  # nobody waits for a gang
        assert lane.finished() == [] and lane.unfinished() == 0
        lane.add([node(name) for name in ("bad", "bad2", "a", "sick")])
        assert lane.unfinished() == 4
        assert wait_for(lane, 4) == {"bad": "clear", "bad2": "clear", "a": None, "sick": "its loss is nan"}
        lane.add([node(name) for name in ("long1", "long2", "b", "c")])
        while not lane.running():
            lane.finished()
        assert set(lane.running()) == {"long1", "long2"}
        ray.kill(lane._gangs._queue, no_restart=False)
        assert wait_for(lane, 4) == dict.fromkeys(("long1", "long2", "b", "c"))
        assert lane.unfinished() == 0 and not lane.running()
        assert len(made.notes("open")) == 1  # one gang, warm from the first to the last
        lane.add([node("long3")])
        while not lane.running():
            lane.finished()
        for controller in lane._gangs.snapshot().controllers.values():
            ray.kill(controller)
        lane.add([node("d")])
        assert wait_for(lane, 2) == {"long3": None, "d": None}
    assert len(made.notes("open")) == 2
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


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


CHILD = """
import os, sys
from pitune.runtime.cluster import connect
from pitune.signals import stoppable
with stoppable(), connect(cpus=1):
    import ray
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
    import time
    time.sleep(60)
"""


@slow
@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_local_ray_ends_with_its_driver(number: int) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-c", CHILD, str(int(number))],  # in background
        capture_output=True,
        text=True,
        timeout=90,
        cwd=root,
        check=False,
    )
    assert child.returncode != 0 and "Traceback" not in child.stderr.partition("KeyboardInterrupt")[2]
    folder = Path(child.stdout.strip()).parent
    assert folder.name.startswith("pitune-")
    deadline = time.monotonic() + 30
    while (folder.exists() or _processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.25)
    assert not folder.exists() and not _processes(folder)


@slow
def test_a_worker_that_no_machine_has_room_for_is_refused(ray_session: None) -> None:
    check_room(RuntimeSettings(cpus_per_worker=2))
    with pytest.raises(
        PituneError, match="a worker takes 3 CPUs, there is room for 0 on 1 machine of 2 CPUs and 0 GPU"
    ):
        check_room(RuntimeSettings(cpus_per_worker=3))


def _processes(folder: Path) -> list[Path]:
    """Return the processes whose command line names ``folder``."""
    return [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if str(folder) in _read(entry)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
