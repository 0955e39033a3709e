"""What tests of single lanes share: a node with nothing but a job, and how to wait for what becomes of nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pitune.runtime.lane import Lane
from pitune.store import Job


@dataclass(frozen=True)
class Node:
    """A node as a lane sees it."""

    job: Job
    cost: float = 1.0
    make: Callable[[Any, Any], None] | None = None
    together: str | None = None


def wait_for(lane: Lane[Node], count: int, seconds: float) -> dict[str, str | None]:
    """Return the error of each node that has ended, by its name, when there are ``count`` or the time is over."""
    ended: dict[str, str | None] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < count and time.monotonic() < deadline:
        ended |= {one.job.artifacts[0]: error for one, error in lane.finished()}
        time.sleep(0.05)
    return ended
