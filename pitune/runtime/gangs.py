"""Gangs: long-lived groups of Ray Train workers that claim packs one after another.

Each gang is one ``TorchTrainer`` that a thread of the driver waits for. Its rank 0 claims a pack from the queue and
broadcasts it; all ranks train it; the work commits the results itself. What Ray Train keeps are the shards of a pack
under way: a worker that dies takes its gang down, the gang starts again, reclaims its pack and resumes it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist
from pyarrow import fs
from ray import cloudpickle
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig

from pitune.errors import PituneError, one_line
from pitune.runtime.cluster import NAMESPACE
from pitune.runtime.queue import TRIES, WAIT, Named, PackQueue, Snapshot

P = TypeVar("P", bound=Named)
P_contra = TypeVar("P_contra", bound=Named, contravariant=True)
MARK = "pitune-pack.json"
"""In each checkpoint: the pack, the world size and the step that it belongs to."""
POLL_SECONDS = 0.25
STOP_SECONDS = 30
"""How long an interrupted driver waits for its gangs to end."""


@dataclass(frozen=True)
class GangSettings:
    """How large gangs are, how many, and where their checkpoints go.

    Attributes:
        storage: folder or URI that every machine of the cluster reaches, for the shards of packs under way. After a
            crash, the same storage and name resume packs of the same names.
        name: of this kind of work.
        workers: per gang (Z).
        cpus_per_worker: also the number of torch's threads.
        gpus_per_worker: 0 or 1.
        gangs: how many; None: as many as there is room for now, and no more than packs.
    """

    storage: str
    name: str = "packs"
    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    gangs: int | None = None


class Seat:
    """A worker's place in its gang: its rank, and the way to report progress and checkpoints of the present pack.

    Args:
        queue: the queue's actor.
        gang: the gang's name.
    """

    def __init__(self, queue: Any, gang: str) -> None:
        context = ray.train.get_context()
        self.rank = int(context.get_world_rank())
        self.world_size = int(context.get_world_size())
        self._queue = queue
        self._gang = gang
        self._pack = ""
        self._told = 0.0

    def progress(self, step: int, steps: int) -> None:
        """Tell the queue how far the pack is, at most twice a second."""
        now = time.monotonic()
        if self.rank == 0 and (now - self._told >= 0.5 or step >= steps):
            self._told = now
            self._queue.progress.remote(self._gang, step, steps)

    def resume(self) -> Path | None:
        """Return a local folder with this pack's last checkpoint; None if it or the world size is another."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        local = isinstance(checkpoint.filesystem, fs.LocalFileSystem)
        folder = Path(checkpoint.path if local else checkpoint.to_directory())
        try:
            mark = json.loads((folder / MARK).read_text())
        except (OSError, ValueError):
            return None
        return folder if (mark["pack"], mark["world_size"]) == (self._pack, self.world_size) else None

    def checkpoint(self, write: Callable[[Path], None], step: int) -> None:
        """Keep what ``write`` puts into the folder it is given, for :meth:`resume`. All workers must call."""
        folder = Path(tempfile.mkdtemp(prefix="pitune-shards-"))
        try:
            write(folder)
            if self.rank == 0:
                mark = {"pack": self._pack, "world_size": self.world_size, "step": step}
                (folder / MARK).write_text(json.dumps(mark))
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take(self, pack: str) -> None:
        """Begin with the pack of this name."""
        self._pack, self._told = pack, 0.0


class PackWork(Protocol[P_contra]):
    """What gangs do with packs; it is pickled and sent to every worker."""

    def open(self, seat: Seat) -> None:
        """Get ready, once in each worker process: load the backbone."""

    def train(self, pack: P_contra, seat: Seat) -> None:
        """Train one pack, on every rank, and commit its results on rank 0."""


def run_packs(
    packs: Sequence[P],
    work: PackWork[P],
    settings: GangSettings,
    on_progress: Callable[[Snapshot], None] = lambda snapshot: None,
) -> dict[str, str]:
    """Let gangs do ``work`` on all ``packs``, in the connected Ray, and return when none is left.

    Args:
        packs: each with a name of its own.
        work: what a worker does.
        settings: size and number of gangs.
        on_progress: called about four times a second, in this thread.

    Returns:
        The error of each pack that failed, in one line; empty when all are done.

    Raises:
        PituneError: the cluster is too small for one gang.
        KeyboardInterrupt: was raised in this thread; the gangs are stopped.
    """
    if not packs:
        return {}
    count = _gang_count(settings, len(packs))
    queue = PackQueue.options(name=f"queue-{uuid.uuid4().hex[:8]}", namespace=NAMESPACE).remote(list(packs))
    gangs = [_Gang(f"{settings.name}-gang{index}", queue, work, settings, len(packs)) for index in range(count)]
    try:
        for gang in gangs:
            gang.start()
        last = _watched(gangs, queue, on_progress)
    finally:
        _stop(gangs, queue)
    on_progress(last)
    return last.failed


class _Gang:
    """One gang, as the driver sees it: a thread that waits for its trainer."""

    def __init__(self, name: str, queue: Any, work: Any, settings: GangSettings, packs: int) -> None:
        self.name = name
        self.error = ""
        self._queue = queue
        self._trainer = _trainer(name, queue, work, settings, packs)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.start = self._thread.start
        self.is_alive = self._thread.is_alive

    def _run(self) -> None:
        """Wait for the gang's end, whichever it is."""
        try:
            self._trainer.fit()
        except Exception as error:  # whatever it is, it ends this gang and no other
            self.error = one_line(error)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._queue.lost.remote(self.name))


def _watched(gangs: Sequence[_Gang], queue: Any, on_progress: Callable[[Snapshot], None]) -> Snapshot:
    """Report progress until no gang is alive; return the last snapshot, in which every pack is done or failed."""
    while any(gang.is_alive() for gang in gangs):
        on_progress(ray.get(queue.snapshot.remote()))
        time.sleep(POLL_SECONDS)
    snapshot: Snapshot = ray.get(queue.snapshot.remote())
    if snapshot.waiting:
        errors = list(snapshot.errors.values()) + [gang.error for gang in gangs if gang.error]
        ray.get(queue.abandon.remote(f"no gang is left to train it ({errors[0] if errors else 'all of them ended'})"))
        snapshot = ray.get(queue.snapshot.remote())
    return snapshot


def _stop(gangs: Sequence[_Gang], queue: Any) -> None:
    """Stop the gangs that are still alive, and the queue.

    A gang that is just starting can be stopped once its controller is known. Its thread must not outlive Ray: a call
    after Ray's end ends the process.
    """
    stopped: set[str] = set()
    deadline = time.monotonic() + STOP_SECONDS
    while any(gang.is_alive() for gang in gangs) and time.monotonic() < deadline:
        with contextlib.suppress(ray.exceptions.GetTimeoutError):  # the queue is just starting too
            known = ray.get(queue.controllers.remote(), timeout=5)
            controllers = [controller for name, controller in known.items() if name not in stopped]
            if controllers:
                ray.wait([one.abort.remote() for one in controllers], num_returns=len(controllers), timeout=5)
            for controller in controllers:
                ray.kill(controller)
            stopped.update(known)
            time.sleep(0.1)
    ray.kill(queue)


class _Registration(ControllerCallback):
    """Tells the queue which actor controls a gang; Ray Train itself offers no handle to stop a run by."""

    def __init__(self, queue: Any, gang: str) -> None:
        self._queue, self._gang = queue, gang

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray Train calls this in the controller."""
        self._queue.register.remote(self._gang, ray.get_runtime_context().current_actor)


def _trainer(name: str, queue: Any, work: Any, settings: GangSettings, packs: int) -> TorchTrainer:
    """Return the trainer that is one gang."""
    resources = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    config = {"queue": queue, "gang": name, "work": work, "threads": max(1, int(settings.cpus_per_worker))}
    storage = settings.storage if "://" in settings.storage else str(Path(settings.storage).absolute())
    run: Any = RunConfig(
        name=name,
        storage_path=storage,
        failure_config=FailureConfig(max_failures=(packs + 1) * TRIES),
        checkpoint_config=CheckpointConfig(num_to_keep=1),
        logging_config=LoggingConfig("ERROR"),
    )
    run.callbacks.append(_Registration(queue, name))
    scaling = ray.train.ScalingConfig(
        num_workers=settings.workers, use_gpu=settings.gpus_per_worker > 0, resources_per_worker=resources
    )
    return TorchTrainer(_work_through, train_loop_config=config, scaling_config=scaling, run_config=run)


def _work_through(config: dict[str, Any]) -> None:
    """What a worker of a gang runs; an error of the runtime itself is noted, for the gang starts again silently."""
    try:
        _claim_and_train(config["queue"], config["gang"], config["work"], config["threads"])
    except Exception as error:
        ray.get(config["queue"].stumbled.remote(config["gang"], one_line(error)))
        raise


def _claim_and_train(queue: Any, gang: str, work: Any, threads: int) -> None:
    """Claim packs and train them until none is left."""
    torch.set_num_threads(threads)
    seat = Seat(queue, gang)
    if not _shared(ray.get(queue.enter.remote(gang)) if seat.rank == 0 else None):
        return
    try:
        work.open(seat)
    except Exception as error:
        ray.get(queue.reject.remote(gang, one_line(error)))
        if seat.world_size > 1:
            raise
        return
    while True:
        pack = _shared(ray.get(queue.claim.remote(gang)) if seat.rank == 0 else None)
        if pack is None:
            return
        if pack == WAIT:
            time.sleep(POLL_SECONDS)
        else:
            _train(pack, work, seat, queue)


def _train(pack: Any, work: Any, seat: Seat, queue: Any) -> None:
    """Train one pack and tell the queue what came of it.

    An error fails the pack. A worker alone goes on with the next one; several must start again, for the others may be
    waiting for the one that failed.
    """
    seat.take(pack.name)
    try:
        work.train(pack, seat)
    except Exception as error:
        ray.get(queue.failed.remote(pack.name, one_line(error)))
        if seat.world_size > 1:
            raise
    else:
        if seat.rank == 0:
            ray.get(queue.done.remote(pack.name))


def _shared(value: Any) -> Any:
    """Return rank 0's ``value`` on every rank."""
    if dist.get_world_size() == 1:
        return value
    # torch's own pickling knows no class of a script or a notebook
    box = [cloudpickle.dumps(value)]  # type: ignore[no-untyped-call]
    dist.broadcast_object_list(box, src=0)
    return cloudpickle.loads(box[0])


def _gang_count(settings: GangSettings, packs: int) -> int:
    """Return how many gangs to start."""
    needed = {"CPU": settings.cpus_per_worker * settings.workers, "GPU": settings.gpus_per_worker * settings.workers}
    there, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
    for kind, amount in needed.items():
        if amount > there.get(kind, 0.0):
            raise PituneError(
                f"gangs of {settings.workers} workers: need {amount:g} {kind}s, "
                f"the cluster has {there.get(kind, 0.0):g};"
                " ask for fewer workers or less for each"
            )
    room = min(int(free.get(kind, 0.0) // amount) for kind, amount in needed.items() if amount > 0)
    return max(1, min(packs, room if settings.gangs is None else settings.gangs))
