"""One gang, as the driver sees it: a ``TorchTrainer`` and the thread that waits for it.

What its controller tells the queue is in :mod:`pitune.runtime.controller`, what its workers do in
:mod:`pitune.runtime.worker`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig

from pitune.errors import one_line
from pitune.runtime.controller import FixedSize, Registration, free_rooms
from pitune.runtime.queue import TRIES
from pitune.runtime.settings import SHARE, RuntimeSettings
from pitune.runtime.signing import Key
from pitune.runtime.worker import work_through

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""They start actors: one serves Ray Data's sets, one frees the room of a dead controller, as the driver does here."""


class Gang:
    """One gang: it starts when it is made.

    Args:
        name: its name, under which the queue knows it.
        rooms: what the names of its rooms begin with.
        queue: the queue's actor.
        new: makes the trainer of the gang of that name and those rooms.

    Attributes:
        error: the error that ended its last controller, in one line.
        stopped: its controller, should it end, is not followed by another.
    """

    def __init__(self, name: str, rooms: str, queue: Any, new: Callable[[str, str], TorchTrainer]) -> None:
        self.name = name
        self.error = ""
        self.stopped = False
        self._rooms = rooms
        self._queue = queue
        self._new = new
        self._tries = self._further = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.is_alive = self._thread.is_alive
        self._thread.start()

    def heard(self, further: int) -> None:
        """Take note of how often the queue says that the gang has got any further."""
        if further > self._further:
            self._tries = 0
        self._further = further  # a queue that has started again counts anew

    def _run(self) -> None:
        """Wait for the gang's end; where its controller has died, start another, unless the gang gets no further."""
        while self._tries < TRIES and not self.stopped:
            self._tries += 1
            self.error = self._led()
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._queue.lost.remote(self.name))
                free_rooms(self._rooms)
            if not self.error:
                return

    def _led(self) -> str:
        """Wait for a controller's end; return what it died of, in one line, if it did."""
        try:
            self._new(self.name, self._rooms).fit()
        except Exception as error:  # whatever it is, it ends this gang and no other
            return one_line(error)
        return ""


class _GangTrainer(TorchTrainer):
    """A trainer whose controller starts no actor that gangs have no use for: each of them imports for two seconds."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        scaling: Any = self.scaling_config
        parts["scaling_policy"] = FixedSize(scaling)
        parts["callbacks"] = [one for one in parts["callbacks"] if not isinstance(one, UNUSED)]
        return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]


def trainer(
    queue: Any, work: Any, settings: RuntimeSettings, storage: str, key: Key, name: str, rooms: str
) -> TorchTrainer:
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
    run.callbacks.append(Registration(queue, name, rooms))
    scaling = ray.train.ScalingConfig(
        num_workers=settings.workers, use_gpu=settings.gpus_per_worker > 0, resources_per_worker=resources
    )
    config = {"queue": queue, "gang": name, "work": work, "threads": settings.cpus_per_worker, "key": key}
    return _GangTrainer(work_through, train_loop_config=config, scaling_config=scaling, run_config=run)
