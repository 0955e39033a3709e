"""Kill one worker of a gang of two, twenty times in a row, at random moments: every pack must be done all the same.

    python benchmarks/kills.py

Ten packs, each of which loses a worker twice, now the first and now the second one. Prints one line a kill and, last,
how many packs are done and what a kill costs; exits with 1 where a pack has failed. Takes 5 to 15 minutes on 2 cores.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pitune.runtime.cluster import connect
from pitune.runtime.gangs import run_packs
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.snapshot import Snapshot
from pitune.runtime.worker import GangSeat

PACKS, KILLS_OF_EACH = 10, 2
STEPS, SECONDS_A_STEP, CHECKPOINT_EVERY = 40, 0.1, 10
EXPERTS, ROWS, WIDTH = 4, 16, 64
SETTINGS = RuntimeSettings(workers=2, gangs=1)


@dataclass(frozen=True)
class Pack:
    """A pack is its name."""

    name: str


class Bank(nn.Module):
    """E trainable matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return rows @ self.weight


@dataclass
class Work:
    """Trains a bank for a while, with checkpoints, and leaves each worker's process id in ``folder``."""

    folder: Path

    def open(self, seat: GangSeat) -> None:
        """Get ready."""

    def train(self, pack: Pack, seat: GangSeat) -> None:
        """Train a pack; its result says which steps it took since it last started."""
        from pitune.training.engine import Engine, EngineSettings

        with Engine(Bank(), EngineSettings(2), experts=EXPERTS) as engine:
            first = 0
            with seat.resume() as folder:
                if folder is not None:
                    engine.load(folder)
                    first = json.loads((folder / "step.json").read_text())

            def save(where: Path) -> None:
                engine.save(where)
                (where / "step.json").write_text(json.dumps(step + 1))

            note = self.folder / f"{pack.name}-{seat.rank}.pid"
            note.with_suffix(".partial").write_text(str(os.getpid()))
            note.with_suffix(".partial").rename(note)
            for step in range(first, STEPS):
                rows = torch.randn(EXPERTS, ROWS, WIDTH, generator=torch.Generator().manual_seed(step))
                engine.set_learning_rate(0.01)
                engine.backward((engine(rows[:, seat.rank :: 2]) ** 2).mean((1, 2)))
                engine.step()
                time.sleep(SECONDS_A_STEP)
                seat.progress(step + 1, STEPS, EXPERTS * ROWS // 2)
                if (step + 1) % CHECKPOINT_EVERY == 0:
                    seat.checkpoint(save, step + 1)
        if seat.rank == 0:
            (self.folder / f"{pack.name}.json").write_text(json.dumps([first, STEPS]))


class Killer:
    """Kills a worker of the pack that runs, a random moment after it has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.random = folder, random.Random(0)
        self.kills: list[tuple[str, int]] = []
        self.last: float | None = None
        self.back: list[float] = []  # seconds from a kill to the next begin

    def __call__(self, snapshot: Snapshot) -> None:
        """Look for a pack that has begun, and kill."""
        for run in snapshot.running:
            pids = sorted(self.folder.glob(f"{run.pack}-?.pid"))
            if len(pids) < SETTINGS.workers:
                continue
            if self.last is not None:
                self.back.append(time.monotonic() - self.last)
                self.last = None
            if sum(pack == run.pack for pack, _ in self.kills) >= KILLS_OF_EACH:
                continue
            time.sleep(self.random.uniform(0, STEPS * SECONDS_A_STEP * 0.8))
            rank = len(self.kills) % SETTINGS.workers
            try:
                os.kill(int(pids[rank].read_text()), signal.SIGKILL)
            except ProcessLookupError:  # the note of a gang that had gone on to this pack when it was killed
                continue
            finally:
                for pid in self.folder.glob("*.pid"):
                    pid.unlink()
            self.kills.append((run.pack, rank))
            self.last = time.monotonic()
            print(
                f"kill {len(self.kills):>2}: rank {rank} of {run.pack}, at step {run.step} of {run.steps}", flush=True
            )


def main() -> None:
    """Run it."""
    packs = [Pack(f"pack{index}") for index in range(PACKS)]
    with tempfile.TemporaryDirectory() as name, connect(cpus=2):
        folder = Path(name)
        killer = Killer(folder)
        began = time.monotonic()
        errors = run_packs(packs, Work(folder), SETTINGS, str(folder / "ray"), killer)
        seconds = time.monotonic() - began
        done = {
            pack.name: json.loads((folder / f"{pack.name}.json").read_text())
            for pack in packs
            if pack.name not in errors
        }
    for pack, error in errors.items():
        print(f"{pack}: {error}")
    resumed = sum(first > 0 for first, _ in done.values())
    print(f"{len(killer.kills)} kills, {len(done)} of {PACKS} packs done, {resumed} of them resumed from a checkpoint")
    print(
        f"{seconds:.0f} s in all; from a kill to the pack's next begin: median {statistics.median(killer.back):.0f} s"
    )
    sys.exit(bool(errors) or len(killer.kills) < PACKS * KILLS_OF_EACH)


if __name__ == "__main__":
    main()
