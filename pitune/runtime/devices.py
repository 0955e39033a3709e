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
    """Return the bytes that a gang's worker has: its share of a GPU, or of this machine's memory by its cores.

    The rest is for the tasks and trials that work beside it. Other machines of a cluster may have more or less.

    Returns:
        None where workers have GPUs and this machine has none that it knows of.
    """
    if settings.gpus_per_worker:
        found = gpu_memory()
        return None if found is None else round(SHARE * found)
    cores = min(1.0, settings.cpus_per_worker / (os.cpu_count() or 1))
    return round(SHARE * cores * machine_memory())


def machine_memory() -> int:
    """Return the bytes of this machine, or of the container that this process is in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = LIMIT.read_text().strip() if LIMIT.exists() else ""
    return min(whole, int(limit)) if limit.isdigit() else whole


def gpu_memory() -> int | None:
    """Return the bytes of this machine's smallest GPU, or None where there is none."""
    if shutil.which(ASKED[0]) is None:
        return None
    told = subprocess.run(ASKED, capture_output=True, text=True, timeout=60, check=False).stdout
    sizes = [int(line) << 20 for line in told.split() if line.isdigit()]
    return min(sizes, default=None)
