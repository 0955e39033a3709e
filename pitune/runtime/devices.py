"""What a gang's worker has of the machine that plans: memory. Ray is not asked, for a plan does without it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pitune.runtime.settings import SHARE, RuntimeSettings

LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says how much memory a container has: bytes, or ``max``."""
ASKED = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
"""Asks the driver for MiB a GPU: torch would leave a context there, which takes memory itself."""


def worker_memory(settings: RuntimeSettings) -> int | None:
    """Return the bytes that a gang's worker has: its share of a GPU, or of this machine's memory among its workers.

    The rest is for the tasks and trials that work beside it. As many workers share the memory as there are cores for,
    or as the settings say. Other machines of a cluster may have more or less.

    Returns:
        None where workers have GPUs and this machine has none that it knows of.
    """
    if settings.gpus_per_worker:
        found = gpu_memory()
        return None if found is None else round(SHARE * found)
    workers = max(1, cores() // settings.cpus_per_worker)
    if settings.gangs:
        workers = min(workers, settings.gangs * settings.workers)
    return round(SHARE * machine_memory() / workers)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Return the bytes of this machine, or of the container that this process is in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = LIMIT.read_text().strip() if LIMIT.exists() else ""
    return min(whole, int(limit)) if limit.isdigit() else whole


def gpu_memory() -> int | None:
    """Return the bytes of this machine's smallest GPU, or None where there is none."""
    if shutil.which(ASKED[0]) is None:
        return None
    try:
        told = subprocess.run(ASKED, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) << 20 for line in told.split() if line.isdigit()]
    return min(sizes, default=None)
