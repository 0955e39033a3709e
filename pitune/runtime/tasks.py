"""The lane of what is computed: stage functions as Ray tasks, a bounded number at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, Self

import ray

from pitune.errors import one_line
from pitune.runtime import metrics
from pitune.runtime.lane import N, error_of, name_of
from pitune.runtime.room import needs, seats, there
from pitune.runtime.settings import RuntimeSettings
from pitune.store import Job

SHARE = 0.4
"""What a task, or a trial, takes of ``cpus_per_worker`` and ``gpus_per_worker``: it fits beside a gang's worker."""
TOGETHER = 12
"""Nodes that are made in one call, of those that can be; with GPUs, nodes that one task makes one after another."""
RETRIES = 3

Call = tuple[Callable[[Any, Any], None], Any]  # a stage, and the job or the jobs that it makes
_opened: dict[str, Any] = {}  # a Ray worker process serves many tasks: it opens the materials once


def opened(shared: Sequence[Any]) -> Any:
    """Return this process's own copy of the materials, which keeps what it has opened between calls.

    Args:
        shared: the reference to the materials, alone in a list, for Ray does not open it then.
    """
    key = shared[0].hex()
    if key not in _opened:
        metrics.count_commits()
        _opened.clear()
        _opened[key] = ray.get(shared[0])
    return _opened[key]


@dataclass
class TaskLane(Generic[N]):
    """The lane of what is computed; see :class:`pitune.runtime.lane.Lane`.

    Nodes with the same ``together`` are made together, up to twelve; fewer of them wait for more until :meth:`flush`.
    With GPUs a task's process ends with it, for an idle one would keep what Ray calls free; so a task then makes
    several nodes, one after another.

    Args:
        materials: what the stages work with; picklable.
        settings: what a task takes of the cluster.
    """

    materials: Any
    settings: RuntimeSettings
    _waiting: list[N] = field(init=False, default_factory=list)
    _flushed: bool = field(init=False, default=False)
    _under_way: dict[Any, list[list[N]]] = field(init=False, default_factory=dict)  # by task: the nodes of each call
    _shared: list[Any] = field(init=False, default_factory=list)

    def __enter__(self) -> Self:
        """Nothing is started before the first node: Ray keeps its workers warm by itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what is under way."""
        for task in self._under_way:
            ray.cancel(task, force=True)
        self._under_way.clear()

    def add(self, nodes: Sequence[N]) -> None:
        """Take nodes and start as many tasks as there is room for."""
        self._waiting += nodes
        self._flushed = self._flushed and not nodes
        self._start()

    def flush(self) -> None:
        """Make the nodes that wait for others to be made together with: no others will come for now."""
        self._flushed = True
        self._start()

    def finished(self) -> list[tuple[N, str | None]]:
        """Return the nodes whose tasks have ended since the last call, and start others."""
        ended: list[tuple[N, str | None]] = []
        for task in self._ready():
            calls = self._under_way.pop(task)
            try:
                errors = ray.get(task)
            except ray.exceptions.RayError as error:
                errors = [one_line(error)] * len(calls)
            ended += [(node, error) for nodes, error in zip(calls, errors, strict=True) for node in nodes]
        self._start()
        return ended

    def running(self) -> dict[str, float]:
        """Return the nodes that tasks work on; how far they are is not known."""
        return {name_of(node): 0.0 for calls in self._under_way.values() for nodes in calls for node in nodes}

    def unfinished(self) -> int:
        """Return how many nodes have not ended."""
        return len(self._waiting) + len(self.running())

    def _ready(self) -> list[Any]:
        """Return the tasks that have ended."""
        tasks = list(self._under_way)
        return list(ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]) if tasks else []

    def _start(self) -> None:
        """Start tasks while there is room and something to do."""
        room = (seats(there(), needs(self.settings)) or 1) - len(self._under_way) if self._waiting else 0
        ready = calls(self._waiting, partial=self._flushed) if room > 0 else []
        several = TOGETHER if self.settings.gpus_per_worker else 1
        for index in range(0, min(len(ready), room * several), several):
            part = ready[index : index + several]
            self._under_way[self._remote(part)] = part
            taken = {name_of(node) for nodes in part for node in nodes}
            self._waiting = [node for node in self._waiting if name_of(node) not in taken]

    def _remote(self, part: Sequence[Sequence[N]]) -> Any:
        """Start the task that makes these nodes."""
        if not self._shared:
            self._shared = [ray.put(self.materials)]
        gpus, cpus = self.settings.gpus_per_worker, self.settings.cpus_per_worker
        options = {"num_cpus": SHARE * cpus, "num_gpus": SHARE * gpus, "max_retries": RETRIES}
        if gpus:
            options["max_calls"] = 1
        given: Any = [(nodes[0].make, _jobs(nodes)) for nodes in part]
        return ray.remote(make_all).options(**options).remote(self._shared, given, cpus)


def calls(waiting: Iterable[N], partial: bool) -> list[list[N]]:
    """Return the nodes that can be made now, those of each call in a list of their own.

    What nothing holds up comes first, for other nodes may need it; then whole groups or, with ``partial``, whatever
    there is, in groups of about one size. The most work is first within each.

    Args:
        waiting: the nodes.
        partial: take groups that are not full.
    """
    by_cost = sorted(waiting, key=lambda node: -node.cost)
    alone = [[node] for node in by_cost if node.together is None]
    grouped = sorted((node for node in by_cost if node.together is not None), key=lambda node: str(node.together))
    groups = []
    for _, same in groupby(grouped, key=lambda node: node.together):
        members = list(same)
        size = math.ceil(len(members) / math.ceil(len(members) / TOGETHER)) if partial else TOGETHER  # none is small
        groups += [members[start : start + size] for start in range(0, len(members), size)]
    taken = [group for group in groups if partial or len(group) == TOGETHER]
    return alone + sorted(taken, key=lambda group: -sum(node.cost for node in group))


def make_all(shared: Sequence[Any], given: Sequence[Call], threads: int) -> list[str | None]:
    """Make jobs in this process, one call after another; return each call's error in one line, or None."""
    import torch

    torch.set_num_threads(threads)
    return [error_of(_make, shared, make, job) for make, job in given]


def _make(shared: Sequence[Any], make: Callable[[Any, Any], None], job: Any) -> None:
    make(opened(shared), job)


def _jobs(nodes: Sequence[Any]) -> Job | list[Job]:
    """Return what the stage of these nodes takes: the one job, or the list of those that are made together."""
    return [node.job for node in nodes] if nodes[0].together is not None else nodes[0].job
