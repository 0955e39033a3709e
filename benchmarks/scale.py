"""How well hundreds of gangs are used: the real plan, driver, queue and store, with gangs that train in virtual time.

    python benchmarks/scale.py
    python benchmarks/scale.py --sizes 20:1:1 200:8:6

A size is slices : gangs : experts a pack. One process plays all gangs (simpy). Real are the plan, the loop of the study
over it, the lane of gangs with its packs, the queue, and the commits with their manifests, of tiny files; the processor
seconds that each takes are added to the virtual clock. The queue answers one call at a time, and so does the lock of
the study's folder. Made up are what training takes (what the plan thinks, times a spread), what Ray takes of a call,
and who dies: one gang in a hundred packs. Three of four come back, to go on from the last checkpoint; the fourth is
gone with its checkpoints, for another gang to begin its pack anew.

Efficiency is what training takes when nothing goes wrong, over gangs times the time from the beginning of the planning
to the last expert. Beside it stands what list scheduling of the same packs reaches with nothing but training: where
packs are few, gangs are idle by arithmetic. Exits with 1 where a bound is missed. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import heapq
import math
import pickle
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import simpy
from madeup import made_up

from pitune.config import StudyConfig
from pitune.plan import Plan
from pitune.plan.comparing import GRAPH
from pitune.plan.plan import materials_of
from pitune.runtime.gangs import GangLane
from pitune.runtime.queue import WAIT, Parcel, Queue
from pitune.runtime.snapshot import Snapshot
from pitune.runtime.worker import IDLE_SECONDS
from pitune.store import Store
from pitune.study import make_all
from pitune.training.pack import ExpertJob, Pack, make_packs

Size = tuple[int, int, int]
SIZES: Sequence[Size] = ((20, 1, 1), (200, 8, 1), (2_000, 64, 1), (10_000, 512, 1))
BOUNDS = {64: 0.95, 512: 0.85}
"""The efficiency that is right for so many gangs."""
ENOUGH = 16
"""Packs a gang. Where there are fewer, the bound is a share of what list scheduling reaches."""

TOKENS_A_SECOND = 16_000
"""That a gang trains: of the experts here one takes a minute in the mean."""
SPREAD = 0.3
"""Standard deviation of the logarithm of what training takes, over what the plan thinks: machines and texts differ."""
LOSSES = 0.01
"""Share of the packs begun during which the gang dies."""
GONE = 0.25
"""Share of the deaths that take the gang's controller, and its checkpoints, along."""
CHECKPOINT_EVERY = 500
START = 25.0
"""Seconds until a gang that starts, or starts again, asks for a pack: imports, and opening the backbone."""
NOTICED = 0.5
"""Seconds until a death is noticed."""
PROGRESS = 0.5
"""Seconds between two words of a gang about how far it is."""
CALL, ROUND_TRIP = 0.0002, 0.001
"""What Ray itself takes of an actor's time for a call, and what a caller that waits for the answer waits at least."""


def is_timed(number: int) -> bool:
    """Say whether a call is timed: reading the clock takes longer than most. The others take as long as the last."""
    return number < 100 or number % 20 == 0


@dataclass
class Line:
    """Whoever serves one call at a time, in the order in which they come: an actor, the holder of a lock.

    Attributes:
        free: when the last call of those that have come is answered.
        busy: seconds that serving took, by the function's name.
        calls: how many there were, likewise.
        last: seconds that the last one took that was timed, likewise.
    """

    env: simpy.Environment
    overhead: float

    def __post_init__(self) -> None:
        self.free = 0.0
        self.busy: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.last: dict[str, float] = {}

    def serve(self, function: Callable[..., Any], *given: Any, **named: Any) -> tuple[Any, float]:
        """Call a function; return what it returns, and how many seconds from now the caller has that."""
        name = function.__name__
        if is_timed(self.calls[name]):
            began = time.process_time()
            found = function(*given, **named)
            self.last[name] = time.process_time() - began
        else:
            found = function(*given, **named)
        self.busy[name] += self.last[name]
        self.calls[name] += 1
        self.free = max(self.env.now, self.free) + self.last[name] + self.overhead
        return found, self.free - self.env.now

    def each(self, name: str) -> float:
        """Return the seconds that a call of this name took in the mean, without the overhead."""
        return self.busy[name] / max(1, self.calls[name])


class Fleet:
    """Gangs in virtual time, in the place of :class:`pitune.runtime.gangs.Gangs`.

    The clock goes on while the driver computes, by the processor seconds that it took, and when it sleeps.

    Args:
        gangs: how many.
        store: which the experts are committed to.
    """

    def __init__(self, gangs: int, store: Store) -> None:
        self.env, self.store, self.random = simpy.Environment(), store, random.Random(0)
        self.queue: Queue[Parcel] = Queue()
        self.actor, self.folder = Line(self.env, CALL), Line(self.env, 0.0)
        self.seconds: dict[str, float] = {}  # that training a pack takes, in the order in which they came
        self.losses, self.driver = 0, 0.0
        self.sending = 0.0  # seconds that writing and reading the last snapshot took, as Ray would send it
        self._saved: dict[tuple[str, str], float] = {}  # the step of a gang's last checkpoint of a pack
        self._left = time.process_time()
        for number in range(gangs):
            self.env.process(self._gang(f"gang{number}"))

    # --- for the driver ----------------------------------------------------------------------------------------

    def add(self, packs: Sequence[Pack]) -> None:
        """Queue packs."""
        parcels = [Parcel.of(pack) for pack in packs]
        self.seconds |= {pack.name: training_seconds(pack) for pack in packs}
        self._meet(0.0)
        self.actor.serve(self.queue.add, parcels)
        self._left = time.process_time()

    def snapshot(self) -> Snapshot:
        """Return how far the packs are, once the queue has answered."""
        self._meet(0.0)
        found, wait = self.actor.serve(self.queue.snapshot)
        if is_timed(self.actor.calls["snapshot"]):
            began = time.process_time()
            pickle.loads(pickle.dumps(found))
            self.sending = time.process_time() - began
        self._left = time.process_time()
        self._meet(wait + ROUND_TRIP + self.sending)
        self.driver += self.sending
        return found  # type: ignore[no-any-return]

    def sleep(self, seconds: float) -> None:
        """Let the gangs live on."""
        self._meet(seconds)

    def close(self) -> None:
        """Say that no more packs come."""
        self.queue.close()

    def end(self, wait: float) -> None:
        """Stop: nothing runs on by itself."""

    def _meet(self, seconds: float) -> None:
        """Let the gangs live on for as long as the driver was busy since it was last here, and some seconds more."""
        busy = time.process_time() - self._left
        self.driver += busy
        self.env.run(until=self.env.now + busy + seconds)
        self._left = time.process_time()

    # --- what a gang does --------------------------------------------------------------------------------------

    def _gang(self, name: str) -> Generator[simpy.Event, Any, None]:
        """Live: as a worker of :mod:`pitune.runtime.worker` does, and start again after a death."""
        while True:
            yield self.env.timeout(START)
            if not (yield from self._ask(self.queue.enter, name)):
                return
            alive = True
            while alive:
                found = yield from self._ask(self.queue.claim, name)
                if found is None:
                    return
                if found == WAIT:
                    yield self.env.timeout(IDLE_SECONDS)
                else:
                    alive = yield from self._train(name, found.opened())

    def _ask(self, function: Callable[..., Any], *given: Any) -> Generator[simpy.Event, Any, Any]:
        """Ask the queue and wait for its answer."""
        found, wait = self.actor.serve(function, *given)
        yield self.env.timeout(wait + ROUND_TRIP)
        return found

    def _train(self, name: str, pack: Pack) -> Generator[simpy.Event, Any, bool]:
        """Train a pack and commit its experts; return whether the gang has lived through it."""
        steps, seconds = pack.recipe.steps, self.seconds[pack.name]
        step = self._saved.get((name, pack.name), 0.0)
        dies = self.random.random() < LOSSES
        last = self.random.uniform(step, steps) if dies else float(steps)
        while step < last:
            after = min(PROGRESS, (last - step) / steps * seconds)
            yield self.env.timeout(after)
            step = step + after / seconds * steps if after == PROGRESS else last
            self.actor.serve(self.queue.progress, name, pack.name, int(step), steps)
        if dies:
            yield from self._die(name, pack, step)
            return False
        for job in pack.jobs:
            _, wait = self.folder.serve(commit, self.store, job, seconds)
            yield self.env.timeout(wait)
        yield from self._ask(self.queue.done, pack.name)
        return True

    def _die(self, name: str, pack: Pack, step: float) -> Generator[simpy.Event, Any, None]:
        """Lose the workers, or with them all that the gang has kept; then its pack is another's."""
        self.losses += 1
        self._saved[name, pack.name] = step // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        yield self.env.timeout(NOTICED)
        if self.random.random() < GONE:
            del self._saved[name, pack.name]
            yield from self._ask(self.queue.lost, name)


def training_seconds(pack: Pack) -> float:
    """Return what training a pack takes: what the plan thinks of it, times a spread of mean one."""
    chance = random.Random(pack.name).gauss(-(SPREAD**2) / 2, SPREAD)
    return sum(job.work for job in pack.jobs) / TOKENS_A_SECOND * math.exp(chance)


def commit(store: Store, job: ExpertJob, seconds: float) -> None:
    """Commit an expert of a few bytes, with a manifest as long as a real one."""
    facts = {"inputs": job.inputs, "recipe": job.recipe.model_dump(), "seconds": seconds}
    store.commit(job.artifacts[0], {"adapter_model.safetensors": job.name.encode()}, job.fingerprint, **facts)


class Elsewhere:
    """A lane whose nodes are there as soon as they are asked for: what is not trained is made by others, meanwhile."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []

    def add(self, nodes: Sequence[Any]) -> None:
        """Take nodes."""
        self.nodes += nodes

    def finished(self) -> list[tuple[Any, None]]:
        """Return them."""
        ended, self.nodes = self.nodes, []
        return [(node, None) for node in ended]

    def running(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def unfinished(self) -> int:
        """Return how many there are."""
        return len(self.nodes)

    def flush(self) -> None:
        """Need no hint."""


class Silent:
    """Nobody looks."""

    def show(self, stages: Sequence[Any]) -> None:
        """Tell nobody."""


# --- a study that is large ---------------------------------------------------------------------------------------


def study(folder: Path, slices: int, pack_size: int) -> StudyConfig:
    """Return a study of so many slices: tables of short and long texts, a full source of each task, few-shot targets.

    Few-shot slices take 2,000 steps, full ones 4,000.
    """
    tasks = [f"task{number:03d}" for number in range(min(100, max(5, slices // 20)))]
    texts = {
        task: [f"{task} {row}" + " word" * (6 + 37 * number % 50) for row in range(100)]
        for number, task in enumerate(tasks)
    }
    seeds = -(-slices // len(tasks)) - 1
    targets = [f"{task}@4#{seed}" for seed in range(seeds) for task in tasks]
    return StudyConfig.model_validate(
        {
            **made_up(folder, texts),
            "sources": tasks,
            "targets": targets[: slices - len(tasks)],
            "methods": ["zero_shot", "single", "nearest"],
            "sweep": {"trials": 1},
            "training": {"few": {"steps": 2_000}, "full": {"steps": 4_000}, "pack_size": pack_size},
        }
    )


# --- measuring it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What came of one size.

    Attributes:
        efficiency: of the gangs.
        ideal: what list scheduling reaches.
        hours: from the beginning of the planning to the last expert.
        planning, listing: processor seconds: the plan; one look at the store when all experts are there.
        commit, claim, snapshot: processor seconds of one call.
        actor, driver, folder: the share of the time in which they are busy.
    """

    packs: int
    losses: int
    efficiency: float
    ideal: float
    hours: float
    planning: float
    listing: float
    commit: float
    claim: float
    snapshot: float
    actor: float
    driver: float
    folder: float


def measure(folder: Path, slices: int, gangs: int, pack_size: int) -> Figures:
    """Let so many gangs make the experts of a study, up to its graph."""
    config = study(folder, slices, pack_size)
    store = Store(config.study)
    began = time.process_time()
    plan = Plan(config, materials_of(config, store), GRAPH)
    planning = time.process_time() - began
    fleet = Fleet(gangs, store)
    with ExitStack() as stack:
        stack.enter_context(mock.patch("pitune.runtime.gangs.Gangs", lambda *given, most: fleet))
        stack.enter_context(mock.patch("pitune.study.time", SimpleNamespace(sleep=fleet.sleep)))
        lane = GangLane(None, lambda jobs: make_packs(jobs, config.training), config.runtime, "")
        lanes: dict[Any, Any] = {"gang": stack.enter_context(lane), "task": Elsewhere(), "driver": Elsewhere()}
        make_all(plan, lanes, Silent())
    began = time.process_time()
    found = len(store.catalogue())
    listing = time.process_time() - began
    if found != slices:
        raise RuntimeError(f"{found} of {slices} experts are there")
    return figures(fleet, gangs, planning, listing)


def figures(fleet: Fleet, gangs: int, planning: float, listing: float) -> Figures:
    """Sum up what gangs have done."""
    seconds, useful, end = list(fleet.seconds.values()), sum(fleet.seconds.values()), fleet.env.now
    return Figures(
        packs=len(seconds),
        losses=fleet.losses,
        efficiency=useful / gangs / (planning + end),
        ideal=useful / gangs / list_scheduled(seconds, gangs),
        hours=(planning + end) / 3600,
        planning=planning,
        listing=listing,
        commit=fleet.folder.each("commit"),
        claim=fleet.actor.each("claim"),
        snapshot=fleet.actor.each("snapshot"),
        actor=(sum(fleet.actor.busy.values()) + CALL * sum(fleet.actor.calls.values())) / end,
        driver=fleet.driver / end,
        folder=sum(fleet.folder.busy.values()) / end,
    )


def list_scheduled(seconds: Sequence[float], gangs: int) -> float:
    """Return when the last pack ends if whichever gang is free takes the next one, and nothing else takes time."""
    free = [0.0] * gangs
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def missed(found: Mapping[Size, Figures]) -> list[str]:
    """Return a line for each bound that is missed."""
    wrong = []
    for (slices, gangs, _), one in found.items():
        few = one.packs < ENOUGH * gangs
        right = BOUNDS.get(gangs, 0.0) * (one.ideal if few else 1.0)
        if one.efficiency < right:
            wrong.append(f"{slices} slices on {gangs} gangs: efficiency {one.efficiency:.3f}, {right:.3f} is right")
    return wrong


HEAD = """\
| slices | gangs | packs | hours | efficiency | list scheduling | deaths | queue busy | driver busy | folder busy |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""
COSTS = """\
| slices | gangs | plan, s | listing, s | commit, ms | claim, µs | snapshot, µs |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def main() -> int:
    """Measure all sizes and print two tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=lambda text: tuple(map(int, text.split(":"))), default=SIZES)
    found: dict[Size, Figures] = {}
    for size in parser.parse_args().sizes:
        with tempfile.TemporaryDirectory(prefix="pitune-scale-") as folder:
            found[size] = measure(Path(folder), *size)
            print(f"{size}: {found[size]}", file=sys.stderr, flush=True)
    print(HEAD)
    for (slices, gangs, _), one in found.items():
        print(
            f"| {slices:,} | {gangs} | {one.packs:,} | {one.hours:.2f} | {one.efficiency:.3f} | {one.ideal:.3f} "
            f"| {one.losses} | {one.actor:.1%} | {one.driver:.1%} | {one.folder:.1%} |"
        )
    print(f"\n{COSTS}")
    for (slices, gangs, _), one in found.items():
        print(
            f"| {slices:,} | {gangs} | {one.planning:.1f} | {one.listing:.2f} | {1e3 * one.commit:.2f} "
            f"| {1e6 * one.claim:.1f} | {1e6 * one.snapshot:.0f} |"
        )
    wrong = missed(found)
    for line in wrong:
        print(f"missed: {line}")
    print("missed" if wrong else "all bounds are met")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
