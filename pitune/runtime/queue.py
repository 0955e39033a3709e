"""The queue of packs: who works on what, how far, and what came of it.

:class:`Queue` is plain Python. Gangs reach it through one Ray actor, which dies with the driver: what is finished is in
the store, and the next run's queue is made from what is missing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import ray

Wait = Literal["wait"]
WAIT: Wait = "wait"
TRIES = 3
"""How often a pack is begun, and a gang in a row, before its deaths count as a failure."""


class Named(Protocol):
    """What a pack must have: a name, unique in its queue."""

    @property
    def name(self) -> str:
        """Return the pack's name."""
        ...


P = TypeVar("P", bound=Named)


@dataclass(frozen=True)
class Running:
    """A pack that a gang works on."""

    pack: str
    gang: str
    step: int
    steps: int


@dataclass(frozen=True)
class Snapshot:
    """The queue at one moment.

    Attributes:
        total: packs in all.
        waiting: packs that nobody has begun, or whose gang died.
        done: packs finished.
        failed: each failed pack's error, in one line.
        running: what the gangs work on.
        errors: each gang's error that came from no pack (the backbone does not load).
    """

    total: int
    waiting: int
    done: int
    failed: dict[str, str]
    running: tuple[Running, ...]
    errors: dict[str, str]


@dataclass
class _Entry(Generic[P]):
    """One pack and its state."""

    pack: P
    state: Literal["waiting", "leased", "done", "failed"] = "waiting"
    gang: str | None = None
    tries: int = 0
    step: int = 0
    steps: int = 0
    error: str = ""


@dataclass
class _Gang:
    """What is known of a gang: starts since it last finished a pack, why it must not start again, its last error."""

    starts: int = 0
    error: str = ""
    last: str = ""
    controller: Any = None


@dataclass
class Queue(Generic[P]):
    """Packs and their states: waiting, leased, done, failed.

    Args:
        packs: in the order in which they are given out.
        tries: how often a pack is begun before its gangs' deaths make it a failure.
    """

    packs: Sequence[P]
    tries: int = TRIES
    _entries: dict[str, _Entry[P]] = field(init=False)
    _gangs: dict[str, _Gang] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._entries = {pack.name: _Entry(pack) for pack in self.packs}
        if len(self._entries) != len(self.packs):
            raise ValueError("two packs have the same name")

    def enter(self, gang: str) -> bool:
        """Say whether ``gang`` may start (again): not after :meth:`reject`, nor after ``tries`` deaths in a row."""
        known = self._gangs.setdefault(gang, _Gang())
        known.starts += 1
        if known.starts > self.tries and not known.error:
            known.error = f"its workers died {self.tries} times in a row{_because(known.last)}"
            self.lost(gang)
        return not known.error

    def reject(self, gang: str, error: str) -> None:
        """Note that ``gang`` cannot work at all; it must not start again."""
        self._gangs.setdefault(gang, _Gang()).error = error
        self.lost(gang)

    def stumbled(self, gang: str, error: str) -> None:
        """Note the error that a worker of ``gang`` dies of, to say it should the gang not recover."""
        self._gangs.setdefault(gang, _Gang()).last = error

    def register(self, gang: str, controller: Any) -> None:
        """Keep the handle of the actor that runs ``gang``, for the driver to stop it by."""
        self._gangs.setdefault(gang, _Gang()).controller = controller

    def controllers(self) -> dict[str, Any]:
        """Return the gangs' registered handles."""
        return {name: gang.controller for name, gang in self._gangs.items() if gang.controller is not None}

    def claim(self, gang: str) -> P | Wait | None:
        """Lease a pack to ``gang``: the one it holds already (it was restarted), or the next that waits.

        Returns:
            The pack; ``"wait"`` while others work on what is left, which may come back; None when nothing is left.
        """
        held = self._held(gang)
        if held is not None:
            self._release(held)
        for entry in ([held] if held is not None else []) + list(self._entries.values()):
            if entry.state == "waiting":
                entry.state, entry.gang, entry.tries = "leased", gang, entry.tries + 1
                entry.step = entry.steps = 0
                return entry.pack
        return WAIT if any(entry.state == "leased" for entry in self._entries.values()) else None

    def progress(self, gang: str, step: int, steps: int) -> None:
        """Note how far ``gang`` is with its pack."""
        held = self._held(gang)
        if held is not None:
            held.step, held.steps = step, steps

    def done(self, pack: str) -> None:
        """Note that ``pack`` is finished and its results are committed."""
        entry = self._entries[pack]
        if entry.gang is not None:
            self._gangs.setdefault(entry.gang, _Gang()).starts = 1
        entry.state, entry.gang = "done", None

    def failed(self, pack: str, error: str) -> None:
        """Note that ``pack`` raised an error; it is not tried again. The first error stays."""
        entry = self._entries[pack]
        if entry.state in ("waiting", "leased"):
            if entry.gang is not None:
                self._gangs.setdefault(entry.gang, _Gang()).starts = 0
            entry.state, entry.gang, entry.error = "failed", None, error

    def lost(self, gang: str) -> None:
        """Note that ``gang`` is gone for good: its pack waits again, or has failed if it was tried often enough."""
        held = self._held(gang)
        if held is not None:
            self._release(held)

    def abandon(self, error: str) -> None:
        """Fail every pack that is not finished: there is no gang left to work on it."""
        for name in self._entries:
            self.failed(name, error)

    def snapshot(self) -> Snapshot:
        """Return the present state."""
        entries = self._entries.values()
        return Snapshot(
            total=len(self._entries),
            waiting=sum(entry.state == "waiting" for entry in entries),
            done=sum(entry.state == "done" for entry in entries),
            failed={entry.pack.name: entry.error for entry in entries if entry.state == "failed"},
            running=tuple(
                Running(entry.pack.name, entry.gang or "", entry.step, entry.steps)
                for entry in entries
                if entry.state == "leased"
            ),
            errors={name: gang.error for name, gang in self._gangs.items() if gang.error},
        )

    def _held(self, gang: str) -> _Entry[P] | None:
        return next((entry for entry in self._entries.values() if entry.gang == gang), None)

    def _release(self, entry: _Entry[P]) -> None:
        """Take a leased pack back from a gang that died on it."""
        last = self._gangs[entry.gang].last if entry.gang in self._gangs else ""
        entry.state, entry.gang = "waiting", None
        if entry.tries >= self.tries:
            entry.state = "failed"
            entry.error = f"its workers died {entry.tries} times while training it{_because(last)}"


def _because(error: str) -> str:
    return f" (last: {error})" if error else ""


PackQueue = ray.remote(num_cpus=0)(Queue)
"""The queue as a Ray actor."""
