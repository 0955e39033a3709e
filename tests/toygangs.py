"""Packs that train a small bank, and the work that gangs do with them."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pitune.errors import OutOfMemory, PituneError
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.worker import GangSeat
from pitune.store import Job

ROWS, WIDTH, EXPERTS, STEPS = 8, 4, 2, 6


@dataclass(frozen=True)
class Pack:
    name: str
    zero_stage: Literal[0, 1, 2, 3] = 2
    die_at: int | None = None
    sleep: float = 0.0
    trains: bool = True
    error: str = ""
    jobs: tuple[Job, ...] = ()
    kill_rank: int | None = None  # this one is killed at step 3, the first time
    room: int | None = None  # on the last rank, so many jobs fit into memory

    def halves(self) -> list[Pack]:
        half = len(self.jobs) // 2
        parts = (self.jobs[:half], self.jobs[half:]) if half else ()
        return [replace(self, name=f"{self.name}-{number}", jobs=jobs) for number, jobs in enumerate(parts, 1)]


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
        if pack.error and seat.rank == seat.world_size - 1:
            raise PituneError(pack.error) if pack.error == "clear" else ValueError(pack.error)
        if pack.room is not None and len(pack.jobs) > pack.room and seat.rank == seat.world_size - 1:
            raise OutOfMemory(f"{pack.name} does not fit")
        self._note("begun", {"pack": pack.name})
        time.sleep(pack.sleep)
        if pack.trains:
            self._train(pack, seat)
        return {job.artifacts[0]: "its loss is nan" for job in pack.jobs if job.artifacts[0].startswith("sick")}

    def _train(self, pack: Pack, seat: GangSeat) -> None:
        from pitune.training.engine import Engine, EngineSettings

        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(STEPS, EXPERTS, ROWS, WIDTH, generator=generator)
        with Engine(Bank(), EngineSettings(pack.zero_stage), experts=EXPERTS) as engine:
            first = 0
            with seat.resume() as folder:
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
                seat.progress(step + 1, STEPS, EXPERTS * ROWS // seat.world_size)
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


def settings(workers: int = 1) -> RuntimeSettings:
    return RuntimeSettings(workers=workers, gangs=1)


def storage(tmp_path: Path) -> str:
    return str(tmp_path / "storage")
