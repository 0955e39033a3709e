"""What a run writes down of how far it is, and what those see who watch it from another shell, or another machine.

A run's account is one small file of the study, which is read without its data and without its plan.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from pitune.errors import PituneError, one_line
from pitune.progress import Progress, Stage, clock, shown
from pitune.store import Store

ACCOUNT = ".progress.json"
WRITE_SECONDS = 5.0
"""Between two accounts of a run."""
LOOK_SECONDS = 2.0
"""Between two looks of those who watch."""


@dataclass(frozen=True)
class Account:
    """How far a run is, as it says itself; all times are the run's own, in seconds since 1970.

    Attributes:
        by: the process, ``host:pid``.
        began: when it took the study.
        told: when it wrote this down.
        stages: those that have begun, as :class:`~pitune.progress.Stage`.
        since: when what is being made was begun, by stage and name (``experts movie@16#0``).
        ended: what ended the run; None: nothing has so far, or nothing that let it say so.
    """

    by: str
    began: float
    told: float
    stages: list[Stage]
    since: dict[str, float]
    ended: str | None = None

    def shown(self) -> list[Stage]:
        """Return the stages; to the name of what is being made is added for how long."""
        return [
            replace(stage, running=[f"{name} ({self._spent(stage, name)})" for name in stage.running])
            for stage in self.stages
        ]

    def _spent(self, stage: Stage, name: str) -> str:
        return clock(self.told - self.since.get(f"{stage.name} {name}", self.told))


FORM = TypeAdapter(Account)


@dataclass
class Recorder:
    """Tells of a run's progress and writes it down in the study."""

    store: Store
    progress: Progress
    _account: Account = field(init=False)
    _written: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        now = time.time()
        self._account = Account(f"{socket.gethostname()}:{os.getpid()}", now, now, [], {})

    def show(self, stages: Sequence[Stage]) -> None:
        """Tell, and write down every few seconds."""
        self.progress.show(stages)
        now, before = time.time(), self._account.since
        names = [f"{stage.name} {name}" for stage in stages for name in stage.running]
        since = {name: before.get(name, now) for name in names}
        self._account = replace(self._account, told=now, stages=list(stages), since=since)
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.write()
            self._written = time.monotonic()

    def end(self, how: str) -> None:
        """Write down how the run has ended."""
        stages = [replace(stage, running=()) for stage in self._account.stages]
        self._account = replace(self._account, told=time.time(), stages=stages, since={}, ended=how)
        self.write()

    def write(self) -> None:
        """Write down what is known now."""
        with contextlib.suppress(PituneError):  # a run does not end for it: where nothing can be written it will soon
            self.store.write(ACCOUNT, FORM.dump_json(self._account))


@contextlib.contextmanager
def recorded(store: Store, progress: Progress) -> Iterator[Progress]:
    """Lend what tells ``progress`` how far a run is and writes it down, and how the block has ended."""
    recorder = Recorder(store, progress)
    recorder.write()  # the last run's account is over
    try:
        yield recorder
    except BaseException as error:
        recorder.end("stopped" if isinstance(error, KeyboardInterrupt) else one_line(error))
        raise
    recorder.end("finished")


def account_of(store: Store) -> Account | None:
    """Return what the run that works on a study, or the last one, says; None where there was none.

    Raises:
        PituneError: it cannot be read.
    """
    try:
        return FORM.validate_json(store.text(ACCOUNT))
    except ValidationError as error:
        raise PituneError(
            f"{store.where(ACCOUNT)}: is no account of a run; delete it, the next run writes it"
        ) from error
    except PituneError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def holder(store: Store) -> str:
    """Say in one line which process works on the study and since when, or how the last run has ended."""
    is_held, account = store.is_locked(), account_of(store)
    if is_held:
        return "running now" + (f": {account.by} since {_time(account.began)}" if account else "")
    if account is None:
        return "no process works on it"
    how = account.ended or "gone without a word, a new one goes on where it was"
    return f"no process works on it; the last run, of {_time(account.began)}: {how}"


def watch(store: Store, console: Console) -> None:
    """Show how far the study is for as long as a process works on it.

    Raises:
        PituneError: there never was a run, or the study cannot be read.
        KeyboardInterrupt: was raised in this thread.
    """
    seen: dict[str, float] = {}  # by stage, how far it was at the first look: the time to go is told from there
    with shown(console) as bars:
        is_held = True
        while is_held:
            is_held = store.is_locked()  # asked first: the last account of a run that has just ended is then there
            bars.show([replace(stage, there=seen.setdefault(stage.name, stage.done)) for stage in _stages(store)])
            time.sleep(LOOK_SECONDS if is_held else 0)


def print_once(store: Store, console: Console) -> None:
    """Print how far the study is, by what its last run says, and what is being made.

    Raises:
        PituneError: there never was a run, or the study cannot be read.
    """
    for stage in _stages(store):
        line = f"{stage.name:<16}{int(stage.done):>5} of {stage.total}   {', '.join(stage.running)}"
        console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def _stages(store: Store) -> list[Stage]:
    account = account_of(store)
    if account is None:
        raise PituneError(f"{store.where(ACCOUNT)}: is not there; no run has written down how far the study is")
    return account.shown()


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
