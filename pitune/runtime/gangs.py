"""Gangs: long-lived groups of Ray Train workers that claim packs one after another.

One set of them serves everything that a run trains. They start with the run, so that their imports and the opening of
the backbone overlap with the driver's planning, wait for packs, and end when the lane does. Each gang is one
``TorchTrainer`` that a thread of the driver waits for; what its workers do is in :mod:`pitune.runtime.worker`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pitune.errors import one_line
from pitune.runtime.cluster import NAMESPACE
from pitune.runtime.controller import FixedSize, Registration
from pitune.runtime.lane import N, name_of
from pitune.runtime.queue import TRIES, Named, PackQueue, Parcel, Snapshot
from pitune.runtime.room import check_room, gang_count
from pitune.runtime.settings import SHARE, RuntimeSettings
from pitune.runtime.signing import Key, key_of
from pitune.runtime.worker import PackWork, work_through
from pitune.store import Job

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""They start actors: one serves Ray Data's sets, one frees the room of a dead controller, as the driver does here."""
POLL_SECONDS = 0.25
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
        self._queue = PackQueue.options(
            name=f"queue-{uuid.uuid4().hex[:8]}", namespace=NAMESPACE, scheduling_strategy=here
        ).remote()
        self._packs: dict[str, Parcel] = {}
        self._closed = False
        self._last: Snapshot | None = None
        self._controllers: dict[str, Any] = {}
        new = functools.partial(_trainer, self._queue, work, settings, storage, key_of(storage))
        self._gangs = [_Gang(f"gang{index}", self._queue, new) for index in range(gang_count(settings, most))]

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


class _Gang:
    """One gang, as the driver sees it: a thread that waits for its trainer."""

    def __init__(self, name: str, queue: Any, new: Callable[[str], TorchTrainer]) -> None:
        self.name = name
        self.error = ""
        self.stopped = False
        self._queue = queue
        self._new = new
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.is_alive = self._thread.is_alive
        self._thread.start()

    def _run(self) -> None:
        """Wait for the gang's end, whichever it is; where its controller has died, start another."""
        for _ in range(TRIES):
            try:
                self._new(self.name).fit()
                break
            except Exception as error:  # whatever it is, it ends this gang and no other
                self.error = one_line(error)
            self._free()
            if self.stopped:
                return
        self._free()

    def _free(self) -> None:
        """Give back the gang's pack and its room."""
        with contextlib.suppress(ray.exceptions.RayError):
            room = ray.get(self._queue.lost.remote(self.name))
            if room is not None:
                remove_placement_group(room)


class _GangTrainer(TorchTrainer):
    """A trainer whose controller starts no actor that gangs have no use for: each of them imports for two seconds."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        scaling: Any = self.scaling_config
        parts["scaling_policy"] = FixedSize(scaling)
        parts["callbacks"] = [one for one in parts["callbacks"] if not isinstance(one, UNUSED)]
        return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]


def _trainer(queue: Any, work: Any, settings: RuntimeSettings, storage: str, key: Key, name: str) -> TorchTrainer:
    """Return the trainer that is one gang."""
    resources = {"CPU": SHARE * settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = SHARE * settings.gpus_per_worker
    run: Any = RunConfig(
        name=name,
        storage_path=storage,
        failure_config=FailureConfig(max_failures=-1),  # the queue counts, and lets no gang start for ever
        checkpoint_config=CheckpointConfig(num_to_keep=1),
        logging_config=LoggingConfig("ERROR"),
    )
    run.callbacks.append(Registration(queue, name))
    scaling = ray.train.ScalingConfig(
        num_workers=settings.workers, use_gpu=settings.gpus_per_worker > 0, resources_per_worker=resources
    )
    config = {"queue": queue, "gang": name, "work": work, "threads": settings.cpus_per_worker, "key": key}
    return _GangTrainer(work_through, train_loop_config=config, scaling_config=scaling, run_config=run)


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
