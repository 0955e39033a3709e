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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from pitune.errors import PituneError
from pitune.runtime.cluster import check_room
from pitune.runtime.gangs import GangSettings, Seat, run_packs
from pitune.runtime.queue import Snapshot

pytestmark = pytest.mark.slow
ROWS, WIDTH, EXPERTS, STEPS = 8, 4, 2, 6


@dataclass(frozen=True)
class Pack:
    name: str
    zero_stage: Literal[0, 1, 2, 3] = 2
    die_at: int | None = None
    sleep: float = 0.0
    error: str = ""


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

    def open(self, seat: Seat) -> None:
        if self.refuse:
            raise PituneError("backbone x: is not there")
        self._note("open", {"rank": seat.rank, "threads": torch.get_num_threads()})

    def train(self, pack: Pack, seat: Seat) -> None:
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


def settings(tmp_path: Path, workers: int = 1, gangs: int | None = 1) -> GangSettings:
    return GangSettings(str(tmp_path / "storage"), workers=workers, gangs=gangs)


@pytest.fixture(scope="module")
def alone(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Ten good packs and two that fail, by one gang of one worker."""
    tmp_path = tmp_path_factory.mktemp("alone")
    made = work(tmp_path)
    packs = [Pack("bad", error="clear"), Pack("worse", error="two\nlines")] + [Pack(f"p{i}") for i in range(10)]
    seen: list[Snapshot] = []
    errors = run_packs(packs, made, settings(tmp_path), seen.append)
    assert errors["bad"] == "clear"
    assert errors["worse"].startswith("ValueError: two lines (test_gangs.py:")
    assert len(errors) == 2
    assert (seen[-1].total, seen[-1].done, seen[-1].waiting, len(seen[-1].failed)) == (12, 10, 0, 2)
    return made


def test_a_failed_pack_leaves_the_others_and_the_gang_alone(alone: Work) -> None:
    assert len(alone.notes("open")) == 1
    assert alone.notes("open")[0]["threads"] == 1
    assert all(alone.result(f"p{i}") == alone.result("p0") for i in range(10))


def test_orchestration_costs_less_than_a_second_a_pack(alone: Work) -> None:
    begun = [note["at"] for note in alone.notes("begun")]
    assert (begun[-1] - begun[0]) / (len(begun) - 1) < 1.0  # with an engine and six steps of training in it


def test_two_workers_train_like_one(alone: Work, tmp_path: Path) -> None:
    both = work(tmp_path)
    packs = [Pack("two", 2), Pack("three", 3)]
    assert run_packs(packs, both, settings(tmp_path, workers=2)) == {}
    expected = alone.result("p0")
    for pack in packs:
        found = both.result(pack.name)
        torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(expected["losses"]))
        torch.testing.assert_close(
            torch.tensor(found["weight"]), torch.tensor(expected["weight"]), atol=1e-5, rtol=1e-4
        )


@pytest.mark.kill
def test_a_killed_worker_resumes_its_pack(alone: Work, tmp_path: Path) -> None:
    killed = work(tmp_path)
    assert run_packs([Pack("mortal", die_at=3), Pack("next")], killed, settings(tmp_path)) == {}
    found = killed.result("mortal")
    assert found["first"] in (1, 2, 3)  # the last checkpoint may not have been taken note of
    assert found["weight"] == alone.result("p0")["weight"]
    assert found["losses"] == alone.result("p0")["losses"][found["first"] :]
    assert killed.result("next") == alone.result("p0")


def test_a_backbone_that_does_not_load_fails_every_pack_in_one_line(ray_session: None, tmp_path: Path) -> None:
    errors = run_packs([Pack("p0"), Pack("p1")], work(tmp_path, refuse=True), settings(tmp_path))
    assert errors == dict.fromkeys(["p0", "p1"], "no gang is left to train it (backbone x: is not there)")


def test_an_interrupt_stops_the_gangs_at_once(ray_session: None, tmp_path: Path) -> None:
    interrupted: list[float] = []

    def watch(snapshot: Snapshot) -> None:
        if snapshot.running and not interrupted:
            interrupted.append(time.monotonic())
            threading.Timer(0.5, _thread.interrupt_main).start()

    with pytest.raises(KeyboardInterrupt):
        run_packs([Pack("long", sleep=300)], work(tmp_path), settings(tmp_path), watch)
    assert time.monotonic() - interrupted[0] < 10


def test_a_gang_that_does_not_fit_is_refused(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(PituneError, match="need 9 CPUs, the cluster has 2"):
        run_packs([Pack("p0")], work(tmp_path), settings(tmp_path, workers=9))


def test_no_packs_are_no_work(tmp_path: Path) -> None:
    assert run_packs([], work(tmp_path), settings(tmp_path)) == {}


CHILD = """
import os, sys
from pitune.runtime.cluster import connect
with connect(cpus=1):
    import ray
    print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
    os.kill(os.getpid(), int(sys.argv[1]))
    import time
    time.sleep(60)
"""


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_local_ray_ends_with_its_driver(number: int) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(int(number))],
        capture_output=True,
        text=True,
        timeout=90,
        cwd=root,
        check=False,
    )
    folder = Path(child.stdout.strip()).parent
    assert folder.name.startswith("pitune-")
    deadline = time.monotonic() + 30
    while (folder.exists() or _processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.25)
    assert not folder.exists() and not _processes(folder)


def test_a_worker_that_no_machine_has_room_for_is_refused(ray_session: None) -> None:
    check_room(2, 0)
    with pytest.raises(PituneError, match="a worker takes 3 CPUs and 0 GPUs, the largest machine has 2 and 0; lower"):
        check_room(3, 0)


def _processes(folder: Path) -> list[Path]:
    """Return the processes whose command line names ``folder``."""
    return [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if str(folder) in _read(entry)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
