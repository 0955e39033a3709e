"""Gangs: long-lived groups of Ray Train workers that claim packs one after another.

One set of them serves everything that a run trains. They start with the run, so that their imports and the opening of
the backbone overlap with the driver's planning, wait for packs, and end when the lane does. More of them join where
machines do; one whose machine is gone gives its pack back and waits for room. What one gang is, is in
:mod:`pitune.runtime.gang`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pitune.runtime.cluster import NAMESPACE
from pitune.runtime.gang import Gang, trainer
from pitune.runtime.lane import N, name_of
from pitune.runtime.queue import TRIES, Named, PackQueue, Parcel
from pitune.runtime.room import check_room, gang_count, has_room
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.signing import key_of
from pitune.runtime.snapshot import Snapshot
from pitune.runtime.worker import PackWork
from pitune.store import Job

POLL_SECONDS = 0.25
LOOK_SECONDS = 5.0
"""Between looks at whether the cluster has room for one more gang."""
END_SECONDS = 10
"""How long gangs have to end by themselves when nothing is left for them."""
STOP_SECONDS = 30
"""How long the driver then waits for those that it stopped."""


class Pack(Named, Protocol):
    """What a lane must know of a pack: its name, the jobs that are in it, and what to try if they do not fit."""

    @property
    def jobs(self) -> Sequence[Job]:
        """Return the pack's jobs."""
        ...

    def halves(self) -> Sequence[Pack]:
        """Return the packs to make of it where it does not fit into memory; none where nothing smaller can be made."""
        ...


class Gangs:
    """The gangs, their queue, and the driver's own memory of what it has put there.

    Args:
        work: what a worker does.
        settings: size and number of gangs.
        storage: folder or URI that every machine of the cluster reaches, for the shards of packs under way. After a
            crash, the same storage resumes packs of the same names, on a machine that has the key of the first run.
        most: more gangs than this are of no use.

    Raises:
        PituneError: the cluster is too small for one gang.
    """

    def __init__(self, work: PackWork[Any], settings: RuntimeSettings, storage: str, most: int | None = None) -> None:
        check_room(settings)
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._id = uuid.uuid4().hex[:8]
        self._queue = PackQueue.options(
            name=f"queue-{self._id}", namespace=NAMESPACE, scheduling_strategy=here
        ).remote()
        self._packs: dict[str, Parcel] = {}
        self._closed = False
        self._last: Snapshot | None = None
        self._controllers: dict[str, Any] = {}
        self._settings, self._most = settings, min(settings.gangs or math.inf, most or math.inf)
        self._new = functools.partial(trainer, self._queue, work, settings, storage, key_of(storage))
        self._gangs: list[Gang] = []
        self._looked = time.monotonic()
        for _ in range(gang_count(settings, most)):
            self._start()

    def add(self, packs: Sequence[Any]) -> None:
        """Queue more packs; returns at once."""
        parcels = {pack.name: Parcel.of(pack) for pack in packs}
        self._packs |= parcels
        self._queue.add.remote(list(parcels.values()))

    def close(self) -> None:
        """Let the gangs end as soon as nothing is left for them; returns at once."""
        if not self._closed:  # a call under way when the queue is ended would make Ray complain
            self._closed = True
            self._queue.close.remote()

    def snapshot(self) -> Snapshot:
        """Return how far the packs are; where no gang is left, all of them are done or failed."""
        alive = self.are_alive()  # asked first: what the last gang did is then in the snapshot
        found: Snapshot = ray.get(self._queue.snapshot.remote())
        if self._last is not None and found.life != self._last.life:
            found = self._filled(self._last)
        if not alive and (found.waiting or found.running):
            errors = [*found.errors.values(), *(gang.error for gang in self._gangs if gang.error), "all of them ended"]
            ray.get(self._queue.abandon.remote(f"no gang is left to train it ({errors[0]})"))
            found = ray.get(self._queue.snapshot.remote())
        for name, parts in found.split.items():
            if self._packs.pop(name, None):
                self._packs |= {part.name: part for part in parts}
        self._last = found
        self._controllers.update(found.controllers)
        for gang in self._gangs:
            gang.heard(found.further.get(gang.name, 0))
        self._grow(found)
        return found

    def are_alive(self) -> bool:
        """Say whether any gang is left."""
        return any(gang.is_alive() for gang in self._gangs)

    def end(self, wait: float = 0.0) -> None:
        """End the gangs and the queue: those that have not ended by themselves after ``wait`` seconds are stopped.

        A gang that is just starting can be stopped once its controller is known. Its thread must not outlive Ray: a
        call after Ray's end ends the process.
        """
        stopped: set[str] = set()
        deadline = time.monotonic() + wait
        while self.are_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        for gang in self._gangs:
            gang.stopped = True
        deadline = time.monotonic() + STOP_SECONDS
        while self.are_alive() and time.monotonic() < deadline:
            with contextlib.suppress(ray.exceptions.GetTimeoutError):  # the queue is just starting too
                self._controllers |= ray.get(self._queue.snapshot.remote(), timeout=5).controllers
                known = dict(self._controllers)
                controllers = [controller for name, controller in known.items() if name not in stopped]
                if controllers:
                    ray.wait([one.abort.remote() for one in controllers], num_returns=len(controllers), timeout=5)
                for controller in controllers:
                    ray.kill(controller)
                stopped.update(known)
                time.sleep(0.1)
        ray.kill(self._queue)

    def _start(self) -> None:
        """Start one more gang."""
        name = f"gang{len(self._gangs)}"
        self._gangs.append(Gang(name, f"{self._id}-{name}-", self._queue, self._new))

    def _grow(self, found: Snapshot) -> None:
        """Now and then, start one more gang where packs wait and a machine has room for it.

        What a gang broke down by may lie with its machine: after as many of them as a pack has tries, none is added.
        """
        now = time.monotonic()
        if not found.waiting or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        alive = sum(gang.is_alive() for gang in self._gangs)
        broken = sum(not gang.is_alive() and bool(gang.error or gang.name in found.errors) for gang in self._gangs)
        if 0 < alive < self._most and broken < TRIES and has_room(self._settings, alive):
            self._start()

    def _filled(self, last: Snapshot) -> Snapshot:
        """Fill a queue that has started again with all that is not known to be finished, and who works on it."""
        ended = last.done | last.failed
        self._packs = {name: pack for name, pack in self._packs.items() if name not in ended}
        held = {run.pack: run.gang for run in last.running}
        ray.get(self._queue.add.remote(list(self._packs.values()), held))
        if self._closed:
            ray.get(self._queue.close.remote())
        found: Snapshot = ray.get(self._queue.snapshot.remote())
        return found


@dataclass
class GangLane(Generic[N]):
    """The lane of all that is trained; see :class:`pitune.runtime.lane.Lane`.

    Args:
        work: what a worker does with a pack.
        make_packs: groups jobs into packs; called with the jobs of all nodes that are added at once.
        settings: size and number of gangs.
        storage: for the shards of packs under way; see :class:`Gangs`.
        most: more gangs than this are of no use.
    """

    work: PackWork[Any]
    make_packs: Callable[[Sequence[Any]], Sequence[Pack]]
    settings: RuntimeSettings
    storage: str
    most: int | None = None
    _gangs: Gangs = field(init=False)
    _open: dict[str, list[N]] = field(init=False, default_factory=dict)  # nodes by their pack's name
    _shares: dict[str, float] = field(init=False, default_factory=dict)

    def __enter__(self) -> Self:
        """Start the gangs; returns at once.

        Raises:
            PituneError: the cluster is too small for one gang.
        """
        self._gangs = Gangs(self.work, self.settings, self.storage, most=self.most)
        return self

    def __exit__(self, *error: object) -> None:
        """End the gangs: in good order, or at once where an error has come through."""
        if error[0] is None:
            self.close()
        self._gangs.end(END_SECONDS if error[0] is None else 0.0)

    def close(self) -> None:
        """Let the gangs end, and free what they hold, as soon as they have nothing left: no more nodes will come."""
        self._gangs.close()

    def add(self, nodes: Sequence[N]) -> None:
        """Queue nodes, in packs."""
        by_artifact = {name_of(node): node for node in nodes}
        packs = self.make_packs([node.job for node in nodes]) if nodes else []
        for pack in packs:
            self._open[pack.name] = [by_artifact[job.artifacts[0]] for job in pack.jobs]
        self._gangs.add(packs)

    def finished(self) -> list[tuple[N, str | None]]:
        """Return the nodes of the packs that have ended since the last call."""
        if not self._open:
            return []
        found, ended = self._gangs.snapshot(), []
        for name, parts in found.split.items():
            by_artifact = {name_of(node): node for node in self._open.pop(name, ())}
            for part in parts if by_artifact else ():
                self._open[part.name] = [by_artifact[job.artifacts[0]] for job in part.opened().jobs]
        for pack in [name for name in self._open if name in found.done or name in found.failed]:
            errors = found.done.get(pack, {})
            ended += [(node, found.failed.get(pack) or errors.get(name_of(node))) for node in self._open.pop(pack)]
        shares = {run.pack: run.step / max(run.steps, 1) for run in found.running}
        self._shares = {name_of(node): share for pack, share in shares.items() for node in self._open.get(pack, [])}
        return ended

    def running(self) -> dict[str, float]:
        """Return the nodes of the packs that gangs work on, as of the last :meth:`finished`."""
        return dict(self._shares)

    def unfinished(self) -> int:
        """Return how many nodes have not ended."""
        return sum(map(len, self._open.values()))


def run_packs(
    packs: Sequence[Any],
    work: PackWork[Any],
    settings: RuntimeSettings,
    storage: str,
    on_progress: Callable[[Snapshot], None] = lambda snapshot: None,
) -> dict[str, str]:
    """Let gangs do ``work`` on all ``packs``, in the connected Ray, and return when none is left.

    Args:
        packs: each with a name of its own.
        work: what a worker does.
        settings: size and number of gangs.
        storage: for the shards of packs under way; see :class:`Gangs`.
        on_progress: called about four times a second, in this thread.

    Returns:
        The error of each pack that failed, in one line; empty when all are done.

    Raises:
        PituneError: the cluster is too small for one gang.
        KeyboardInterrupt: was raised in this thread; the gangs are stopped.
    """
    if not packs:
        return {}
    gangs = Gangs(work, settings, storage, most=len(packs))
    errors: dict[str, str] = {}
    try:
        gangs.add(packs)
        gangs.close()
        left = True
        while left:
            left = gangs.are_alive()
            found = gangs.snapshot()
            errors |= found.failed
            on_progress(found)
            time.sleep(POLL_SECONDS if left else 0)
    finally:
        gangs.end()
    return errors
