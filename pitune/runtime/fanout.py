"""Fan-out: the same stage function over many jobs, as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
import torch

from pitune.errors import one_line
from pitune.materials import Materials
from pitune.runtime.settings import RuntimeSettings

Job = TypeVar("Job")
_opened: dict[str, Materials] = {}  # a Ray worker process serves many tasks: it opens the materials once


def opened(materials: Materials) -> Materials:
    """Return this process's own copy of ``materials``, which keeps what it has opened between calls."""
    key = materials.key
    if key not in _opened:
        _opened.clear()
        _opened[key] = materials
    return _opened[key]


def fan_out(
    function: Callable[[Materials, Job], None],
    materials: Materials,
    jobs: Mapping[str, Job],
    settings: RuntimeSettings,
    on_progress: Callable[[Sequence[str]], None],
) -> dict[str, str]:
    """Run ``function(materials, job)`` for every job as a Ray task.

    Args:
        function: a stage that commits its own result.
        materials: what it works with.
        jobs: the jobs by name.
        settings: what a task takes of the cluster.
        on_progress: called with the names of the jobs that are not done, the first ones running.

    Returns:
        The error of each job that failed, in one line; the others are done.
    """
    task = ray.remote(_run).options(num_cpus=settings.cpus_per_worker, num_gpus=settings.gpus_per_worker, max_retries=3)
    shared = ray.put(materials)
    waiting = {task.remote(function, shared, job, settings.cpus_per_worker): name for name, job in jobs.items()}
    errors: dict[str, str] = {}
    try:
        while waiting:
            on_progress(list(waiting.values()))
            finished, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for reference in finished:
                name = waiting.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    errors[name] = one_line(error)
    except BaseException:
        for reference in waiting:
            ray.cancel(reference, force=True)
        raise
    on_progress([])
    return errors


def _run(function: Callable[[Materials, Any], None], materials: Materials, job: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    function(opened(materials), job)
