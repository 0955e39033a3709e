"""What is logged of a pack under way: lines of JSON in a file of the study, ``logs/<pack>.jsonl``."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pitune.errors import PituneError
from pitune.store import Store

SECONDS = 10.0
"""Between two lines of one pack; its first step and its last one have a line in any case."""
FAR_SECONDS = 60.0
"""The same where the study is in an object store, which takes a file anew for each line."""


class PackLog:
    """The log of one pack, which one of its workers writes.

    A line has ``time`` (UTC), ``study``, ``pack``, ``worker`` (``host:pid``), ``step``, ``steps``, ``rows_per_second``
    (of all workers, since the line before; null in the first) and ``losses``: of each expert, by
    its artifact, the loss of this step over this worker's rows, null where it is no number.

    Args:
        store: the study.
        pack: its name.
        experts: their artifacts, in the pack's order.
    """

    def __init__(self, store: Store, pack: str, experts: Sequence[str]) -> None:
        self._store, self._path, self._experts = store, f"logs/{pack}.jsonl", experts
        self._facts = {"study": store.name, "pack": pack, "worker": f"{socket.gethostname()}:{os.getpid()}"}
        self._seconds = SECONDS if store.is_local else FAR_SECONDS
        self._told: float | None = None
        self._rows = 0

    def step(self, step: int, steps: int, rows: int, losses: Callable[[], Sequence[float]]) -> None:
        """Note a step that all workers took on so many rows; write a line if it is time for one.

        Args:
            step: how many have been taken.
            steps: how many there are.
            rows: of this step, of all workers.
            losses: gives each expert's; it waits for the GPU, and is called for a line only.
        """
        now = time.monotonic()
        self._rows += rows
        if self._told is not None and now - self._told < self._seconds and step < steps:
            return
        rate = None if self._told is None else round(self._rows / max(now - self._told, 1e-9), 1)
        self._rows = 0
        known = [round(loss, 6) if math.isfinite(loss) else None for loss in losses()]
        found = dict(zip(self._experts, known, strict=True))
        facts = {"step": step, "steps": steps, "rows_per_second": rate, "losses": found}
        line = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", **self._facts, **facts}
        with contextlib.suppress(PituneError):  # a pack does not fail for its log
            self._store.append(self._path, json.dumps(line).encode() + b"\n")
        self._told = time.monotonic()
