"""Progress: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 15  # between plain lines of one stage
KNOWN = 0.1  # the share of a stage after which the time to go can be told: workers take a while to start


@contextlib.contextmanager
def shown(console: Console) -> Iterator[StageProgress]:
    """Show the progress of a study on ``console`` inside the block."""
    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[count]:>9}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]:<12}"),
        TextColumn("[dim]{task.fields[running]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as bars:
        yield StageProgress(console, bars)


class StageProgress:
    """Says what is running, how far it is and how long it has to go."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console, self._bars = console, bars
        self._task: TaskID | None = None
        self._name, self._there, self._of, self._began, self._said = "", 0, 0, 0.0, 0.0

    def stage(self, name: str, total: int, there: int) -> None:
        """Begin a stage of which ``there`` of ``total`` artifacts are there already."""
        self._name, self._there, self._of = name, there, total
        self._began = self._said = time.monotonic()
        count = f"{there}/{total}"
        self._task = self._bars.add_task(name, total=total, completed=there, count=count, left="", running="")
        if not self._console.is_terminal:
            self._say(f"{name}: {there} of {total} there" + (", starting" if there < total else ""))

    def update(self, done: float, total: float, running: Sequence[str]) -> None:
        """Show that ``done`` of the ``total`` jobs that were missing are done."""
        now = time.monotonic()
        wanted = self._of - self._there
        share = done / total if total else 1.0
        spent = now - self._began
        left = f"{_clock(spent / share * (1 - share))} to go" if KNOWN <= share < 1 else ""
        names = ", ".join(running[:3]) + (f" and {len(running) - 3} more" if len(running) > 3 else "")
        names = names or ("starting workers" if share == 0 else "")
        count = f"{self._there + int(share * wanted)}/{self._of}"
        if self._task is not None:
            self._bars.update(self._task, completed=self._there + share * wanted, count=count, left=left, running=names)
        if not self._console.is_terminal and now - self._said >= (0 if share == 1 else PLAIN_SECONDS):
            self._said = math.inf if share == 1 else now
            self._say(", ".join(part for part in (f"{self._name}: {count} after {_clock(spent)}", left, names) if part))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
