"""The lanes of a run: those that something is to be made in, open from its begin to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from pitune.plan import Lane, Plan
from pitune.plan.packing import packer, to_train
from pitune.runtime import metrics
from pitune.runtime.devices import worker_memory
from pitune.runtime.driver import DriverLane
from pitune.runtime.gangs import GangLane
from pitune.runtime.search import SearchLane
from pitune.runtime.tasks import TaskLane
from pitune.training.work import ExpertTraining

Lanes = Mapping[Lane, Any]


@contextlib.contextmanager
def open_lanes(plan: Plan, wanted: set[Lane]) -> Iterator[Lanes]:
    """Open the lanes ``wanted``, in the connected Ray, and this process's own.

    Raises:
        PituneError: the cluster is too small for one worker.
    """
    metrics.count_commits()
    materials, config, store = plan.materials, plan.config, plan.store
    with contextlib.ExitStack() as stack:
        lanes: dict[Lane, Any] = {"driver": stack.enter_context(DriverLane(materials))}
        if "gang" in wanted:
            packs = packer(plan, worker_memory(config.runtime))
            storage = stack.enter_context(store.scratch("train"))
            most = len(packs(to_train(plan)))
            work = ExpertTraining(materials, config.training)
            lanes["gang"] = stack.enter_context(GangLane(work, packs, config.runtime, storage, most))
        if "task" in wanted:
            lanes["task"] = stack.enter_context(TaskLane(materials, config.runtime))
        if "search" in wanted:
            storage = stack.enter_context(store.scratch("tune"))
            lanes["search"] = stack.enter_context(SearchLane(materials, config.runtime, storage))
        yield lanes
