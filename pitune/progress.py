"""Progress: a live display on a terminal, plain lines elsewhere; several stages go on at once."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

PLAIN_SECONDS = 15  # between plain lines of one stage
KNOWN = 0.1  # the share of a stage after which the time to go can be told: workers take a while to start


@dataclass(frozen=True)
class Stage:
    """How far a stage is.

    Attributes:
        name: of the stage.
        total: how many nodes it has.
        there: how many of them were there when the run, or the watching, began.
        done: how many are there now, those that are being made in part.
        running: what is being made.
    """

    name: str
    total: int
    there: float
    done: float
    running: Sequence[str] = ()


class Progress(Protocol):
    """Who is told how far a study is."""

    def show(self, stages: Sequence[Stage]) -> None:
        """The stages that have begun, or that are all there, have come so far."""


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
    with Bars(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as bars:
        yield StageProgress(console, bars)


@dataclass
class _Line:
    """What is shown of a stage: its bar, when it began, when it was last told of on a plain console."""

    bar: TaskID
    began: float
    said: float


class StageProgress:
    """Says of each stage that has begun what is running, how far it is and how long it has to go."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console, self._bars = console, bars
        self._lines: dict[str, _Line] = {}

    def show(self, stages: Sequence[Stage]) -> None:
        """Show how far the stages are that have begun, or that are all there."""
        for stage in stages:
            if stage.name not in self._lines:
                self._begin(stage)
            self._update(stage, self._lines[stage.name])

    def _begin(self, stage: Stage) -> None:
        now = time.monotonic()
        count = f"{int(stage.there)}/{stage.total}"
        bar = self._bars.add_task(
            stage.name, total=stage.total, completed=int(stage.there), count=count, left="", running=""
        )
        self._lines[stage.name] = _Line(bar, now, now)
        starting = stage.there < stage.total
        self._say(f"{stage.name}: {int(stage.there)} of {stage.total} there" + (", starting" if starting else ""))
        if not starting:
            self._bars.stop_task(bar)

    def _update(self, stage: Stage, line: _Line) -> None:
        if line.said == math.inf or stage.there == stage.total:
            return
        now = time.monotonic()
        share = (stage.done - stage.there) / (stage.total - stage.there)
        spent = now - line.began
        left = f"{clock(spent / share * (1 - share))} to go" if KNOWN <= share < 1 else ""
        running = stage.running
        names = ", ".join(running[:3]) + (f" and {len(running) - 3} more" if len(running) > 3 else "")
        names = names or ("starting workers" if share == 0 else "")
        count = f"{int(stage.done)}/{stage.total}"
        self._bars.update(line.bar, completed=stage.done, total=stage.total, count=count, left=left, running=names)
        if share == 1:
            self._bars.stop_task(line.bar)
        if now - line.said >= (0 if share == 1 else PLAIN_SECONDS):
            line.said = math.inf if share == 1 else now
            parts = (f"{stage.name}: {count} after {clock(spent)}", left, names)
            self._say(", ".join(part for part in parts if part))

    def _say(self, line: str) -> None:
        """Print a plain line, where no bars are shown."""
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Return a time span as minutes and seconds: ``2:05``."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
