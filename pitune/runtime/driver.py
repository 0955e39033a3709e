"""The lane of what is made in the driver itself: small things, a little at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self

from pitune.runtime.lane import N, error_of, name_of

SECONDS = 0.25
"""How long the lane works in one call of :meth:`DriverLane.finished`."""


@dataclass
class DriverLane(Generic[N]):
    """Makes nodes in this process; see :class:`pitune.runtime.lane.Lane`.

    Args:
        materials: what the stages work with.
    """

    materials: Any
    _waiting: deque[N] = field(init=False, default_factory=deque)

    def __enter__(self) -> Self:
        """Start nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave what is left."""
        self._waiting.clear()

    def add(self, nodes: Sequence[N]) -> None:
        """Take nodes."""
        self._waiting.extend(nodes)

    def finished(self) -> list[tuple[N, str | None]]:
        """Make nodes for a moment and return them."""
        ended: list[tuple[N, str | None]] = []
        until = time.monotonic() + SECONDS
        while self._waiting and time.monotonic() < until:
            node = self._waiting.popleft()
            assert node.make is not None
            ended.append((node, error_of(node.make, self.materials, node.job)))
        return ended

    def running(self) -> dict[str, float]:
        """Return what comes next."""
        return {name_of(node): 0.0 for node in list(self._waiting)[:1]}

    def unfinished(self) -> int:
        """Return how many nodes are left."""
        return len(self._waiting)
