"""What each worker of a gang runs: claim a pack, train it, tell the queue what came of it, until none is left.

Rank 0 claims and broadcasts; all ranks train; the work commits its results itself. What Ray Train keeps are the shards
of a pack under way: a worker that dies takes its gang down, the gang starts again, reclaims its pack and resumes it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist
from pyarrow import fs

from pitune.errors import OutOfMemory, PituneError, one_line
from pitune.runtime import metrics
from pitune.runtime.queue import WAIT, Named, Parcel
from pitune.runtime.signing import Key, Label, Unsigned, copy_signed, sign

P_contra = TypeVar("P_contra", bound=Named, contravariant=True)
IDLE_SECONDS = 0.25
BETWEEN_WORKERS = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|timed out|\bgloo\b|\bnccl|\btcpstore|heartbeat", re.I
)
"""What the text of a RuntimeError has in it that torch raises because another worker is gone."""


class GangSeat:
    """A worker's place in its gang: its rank, and the way to report progress and checkpoints of the present pack.

    Args:
        queue: the queue's actor.
        gang: the gang's name.
        key: what checkpoints are signed with.
        between: the way to the gang's other workers.
    """

    def __init__(self, queue: Any, gang: str, key: Key, between: Between) -> None:
        context = ray.train.get_context()
        self.rank = int(context.get_world_rank())
        self.world_size = int(context.get_world_size())
        self._queue = queue
        self._gang = gang
        self._key = key
        self._between = between
        self._pack = ""
        self._told = 0.0

    def progress(self, step: int, steps: int, rows: int) -> None:
        """Count rows, and tell the queue how far the pack is, at most twice a second."""
        metrics.ROWS.inc(rows)
        now = time.monotonic()
        if self.rank == 0 and (now - self._told >= 0.5 or step >= steps):
            self._told = now
            self._queue.progress.remote(self._gang, self._pack, step, steps)

    @contextlib.contextmanager
    def resume(self) -> Iterator[Path | None]:
        """Lend a folder with this pack's last checkpoint: a private copy of what the gang's workers signed.

        None if there is none, or it or the world size is another, or a worker finds that it is not as it was signed,
        which is logged: all go on from the same step, or all begin anew. All workers must call.
        """
        with tempfile.TemporaryDirectory(prefix="pitune-shards-", ignore_cleanup_errors=True) as folder:
            steps = set(self._between.all(self._copy_checkpoint(Path(folder))))
            yield Path(folder) if len(steps) == 1 and None not in steps else None

    def checkpoint(self, write: Callable[[Path], None], step: int) -> None:
        """Keep, signed, what ``write`` puts into the folder it is given, for :meth:`resume`. All workers must call."""
        with tempfile.TemporaryDirectory(prefix="pitune-shards-", ignore_cleanup_errors=True) as folder:
            write(Path(folder))
            sign(Path(folder), Label(self._pack, self.world_size, self.rank, step), self._key)
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _copy_checkpoint(self, to: Path) -> int | None:
        """Copy what is signed of this pack's last checkpoint, and return its step; None if there is no such one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        source = fs.SubTreeFileSystem(checkpoint.path, checkpoint.filesystem)
        try:
            return copy_signed(source, to, self._pack, self.world_size, self._key)
        except Unsigned as wrong:
            logging.getLogger(__name__).warning("%s begins anew: %s/%s", self._pack, checkpoint.path, wrong)
            return None

    def take(self, pack: str) -> None:
        """Begin with the pack of this name."""
        self._pack, self._told = pack, 0.0


class PackWork(Protocol[P_contra]):
    """What gangs do with packs; it is pickled and sent to every worker."""

    def open(self, seat: GangSeat) -> None:
        """Get ready, once in each worker process, before the first pack is known: load the backbone."""

    def train(self, pack: P_contra, seat: GangSeat) -> Mapping[str, str] | None:
        """Train one pack, on every rank, and commit its results on rank 0.

        Returns:
            The error, in one line, of each member that has not come out well, by the name of its first artifact; the
            others are committed. What is raised fails the whole pack, but for OutOfMemory, after which its halves come.
        """


def work_through(config: dict[str, Any]) -> None:
    """Run a worker of a gang until no pack is left.

    An error of the runtime itself is noted, for the gang starts again silently.

    Args:
        config: ``queue`` (the actor), ``gang`` (its name), ``work``, ``threads`` and ``key``, which checkpoints are
            signed with.
    """
    try:
        _claim_and_train(**config)
    except Exception as error:
        ray.get(config["queue"].stumbled.remote(config["gang"], one_line(error)))
        raise


def is_packs_fault(error: BaseException, workers: int) -> bool:
    """Say whether an error that a worker's training raised is its pack's, or came from between the workers.

    When one of several workers dies, the others see closed connections before anyone knows why: that starts the gang
    again. What a worker alone raises, and what says in its own words what is wrong, would be raised again.
    """
    while True:
        if isinstance(error, PituneError):
            return True
        if isinstance(error, (dist.DistError, ConnectionError, TimeoutError, ray.exceptions.RayError)):
            return False
        if workers > 1 and isinstance(error, RuntimeError) and BETWEEN_WORKERS.search(str(error)):
            return False
        below = error.__cause__ or error.__context__
        if below is None:
            return True
        error = below


def _claim_and_train(queue: Any, gang: str, work: Any, threads: int, key: Key) -> None:
    """Open the work, then claim packs and train them until none is left."""
    torch.set_num_threads(threads)
    metrics.count_commits()
    between = Between()
    seat = GangSeat(queue, gang, key, between)
    if not between.first(ray.get(queue.enter.remote(gang)) if seat.rank == 0 else None):
        return
    try:
        work.open(seat)
    except Exception as error:
        if not is_packs_fault(error, seat.world_size):
            raise
        ray.get(queue.reject.remote(gang, one_line(error)))
        if seat.world_size > 1:
            raise
        return
    for pack in _claimed(queue, gang, seat.rank, between):
        _train(pack, work, seat, queue)


def _claimed(queue: Any, gang: str, rank: int, between: Between) -> Iterator[Any]:
    """Yield the packs that rank 0 claims, on every rank; wait while there is none but more may come."""
    while True:
        found = between.first(ray.get(queue.claim.remote(gang)) if rank == 0 else None)
        if found is None:
            return
        if found == WAIT:
            time.sleep(IDLE_SECONDS)
        else:
            yield found.opened()


def _train(pack: Any, work: Any, seat: GangSeat, queue: Any) -> None:
    """Train one pack and tell the queue what came of it.

    Only the pack's own fault fails it; anything else starts the gang again. After its fault a worker alone goes on with
    the next pack; several start again, for the others may be waiting for the one that failed. What does not fit into
    memory is no failure as long as there are halves of it: they are packs like others, and the workers start again, so
    that nothing of the attempt is left in their memory.
    """
    seat.take(pack.name)
    try:
        errors = work.train(pack, seat)
    except Exception as error:
        if not is_packs_fault(error, seat.world_size):
            raise
        full = isinstance(error, OutOfMemory)
        parts = [Parcel.of(half) for half in pack.halves()] if full else []
        if parts:
            ray.get(queue.split.remote(pack.name, parts))
        else:
            ray.get(queue.failed.remote(pack.name, one_line(error)))
        if full or seat.world_size > 1:
            raise
    else:
        if seat.rank == 0:
            ray.get(queue.done.remote(pack.name, errors))


class Between:
    """What a gang's workers tell each other over the CPU: a GPU that waits in NCCL for the next pack would be busy."""

    def __init__(self) -> None:
        other = dist.get_world_size() > 1 and dist.get_backend() != "gloo"
        self._group: Any = dist.new_group(backend="gloo") if other else None

    def first(self, value: Any) -> Any:
        """Return rank 0's ``value`` on every rank."""
        if dist.get_world_size() == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Return every rank's ``value``, in their order, on every rank."""
        if dist.get_world_size() == 1:
            return [value]
        box = [None] * dist.get_world_size()
        dist.all_gather_object(box, value, group=self._group)
        return box
