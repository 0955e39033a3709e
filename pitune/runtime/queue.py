"""The queue of packs: who works on what, how far, and what came of it.

:class:`Queue` is plain Python. Gangs reach it through one Ray actor beside the driver. What is finished is in the
store; what is under way the driver knows too. So an actor that was lost starts again empty, is filled anew by the
driver, and the gangs find the packs that they hold in it by their names.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import ray
from ray import cloudpickle

from pitune.runtime import metrics
from pitune.runtime.snapshot import Running, Snapshot

Wait = Literal["wait"]
WAIT: Wait = "wait"
TRIES = 3
"""How often a pack is begun, and a gang started, without getting any further, before its deaths are a failure."""
PREEMPTIONS = 100
"""How many deaths with a machine count against neither a pack nor a gang: none goes on for ever."""


class Named(Protocol):
    """What a pack must have: a name, unique in its queue."""

    @property
    def name(self) -> str:
        """Return the pack's name."""
        ...


P = TypeVar("P", bound=Named)


@dataclass(frozen=True)
class Parcel:
    """A pack as the queue's actor holds it: it need not know, nor import, what is in there."""

    name: str
    content: bytes

    @classmethod
    def of(cls, pack: Named) -> Parcel:
        """Wrap a pack."""
        return cls(pack.name, cloudpickle.dumps(pack))  # type: ignore[no-untyped-call]

    def opened(self) -> Any:
        """Return the pack."""
        return cloudpickle.loads(self.content)


@dataclass
class _Entry(Generic[P]):
    """One pack; its state is where the queue keeps it.

    ``furthest`` is the step that it has ever reached, ``preempted`` how many of its tries do not count.
    """

    pack: P
    turn: int
    gang: str | None = None
    tries: int = 0
    step: int = 0
    steps: int = 0
    furthest: int = 0
    preempted: int = 0


@dataclass
class _Crew:
    """What is known of a gang: its starts since it got any further, why it must not start again, its last error.

    ``preempted`` is how many of its starts do not count, ``further`` how often it has got any further.
    """

    starts: int = 0
    preempted: int = 0
    further: int = 0
    error: str = ""
    last: str = ""
    controller: Any = None


@dataclass
class Queue(Generic[P]):
    """Packs and their states: waiting, leased, done, failed, split. Gangs wait for more until it is closed.

    Hundreds of gangs ask it several times a second: no call of theirs looks through the packs.

    Args:
        tries: how often a pack is begun without getting further before its gangs' deaths make it a failure.
    """

    tries: int = TRIES
    _life: str = field(init=False, default_factory=lambda: uuid.uuid4().hex)
    _closed: bool = field(init=False, default=False)
    _entries: dict[str, _Entry[P]] = field(init=False, default_factory=dict)
    _waiting: list[tuple[int, str]] = field(init=False, default_factory=list)  # a heap by turn; may have ended ones
    _leased: dict[str, _Entry[P]] = field(init=False, default_factory=dict)  # by gang
    _done: dict[str, dict[str, str]] = field(init=False, default_factory=dict)
    _failed: dict[str, str] = field(init=False, default_factory=dict)
    _split: dict[str, Sequence[P]] = field(init=False, default_factory=dict)
    _crews: dict[str, _Crew] = field(init=False, default_factory=dict)
    _early: dict[str, dict[str, str] | str] = field(init=False, default_factory=dict)  # ends of packs not yet added

    # --- for the driver ----------------------------------------------------------------------------------------

    def add(self, packs: Sequence[P], held: Mapping[str, str] | None = None) -> None:
        """Take more packs, behind those that are there; one that is there already changes nothing.

        Args:
            packs: in the order in which they are given out.
            held: the gang that works on a pack already, by the pack's name, as the driver last heard; one that has
                claimed another since has left it.
        """
        for pack in packs:
            if pack.name in self._entries:
                continue
            entry = self._entries[pack.name] = _Entry(pack, len(self._entries))
            gang = (held or {}).get(pack.name)
            if gang is None or gang in self._leased:
                self._wait(entry)
            else:
                self._lease(entry, gang)
            match self._early.pop(pack.name, None):
                case str(error):
                    self.failed(pack.name, error)
                case dict(errors):
                    self.done(pack.name, errors)

    def close(self) -> None:
        """Say that no more packs come: gangs end when none is left."""
        self._closed = True

    def abandon(self, error: str) -> None:
        """Fail every pack that is not finished: there is no gang left to work on it."""
        for name in self._entries:
            self.failed(name, error)

    def snapshot(self) -> Snapshot:
        """Return the present state; the driver asks so often that the metrics of it are set here."""
        total = len(self._entries) - len(self._split)
        waiting = total - len(self._done) - len(self._failed) - len(self._leased)
        metrics.PACKS.set(waiting, {"state": "waiting"})
        metrics.PACKS.set(len(self._leased), {"state": "running"})
        return Snapshot(
            life=self._life,
            total=total,
            waiting=waiting,
            done=dict(self._done),
            failed=dict(self._failed),
            running=tuple(
                Running(entry.pack.name, gang, entry.step, entry.steps) for gang, entry in self._leased.items()
            ),
            errors={name: crew.error for name, crew in self._crews.items() if crew.error},
            controllers={name: crew.controller for name, crew in self._crews.items() if crew.controller is not None},
            split=dict(self._split),
            further={name: crew.further for name, crew in self._crews.items()},
        )

    # --- for the gangs -----------------------------------------------------------------------------------------

    def register(self, gang: str, controller: Any) -> None:
        """Keep the actor that runs ``gang``, for the driver to stop it by."""
        self._crew(gang).controller = controller

    def enter(self, gang: str) -> bool:
        """Say whether ``gang`` may start (again): not after :meth:`reject`, nor after ``tries`` deaths in a row."""
        crew = self._crew(gang)
        crew.starts += 1
        if crew.starts > self.tries and not crew.error:
            crew.error = f"its workers died {self.tries} times in a row{_because(crew.last)}"
            self.lost(gang)
        return not crew.error

    def reject(self, gang: str, error: str) -> None:
        """Note that ``gang`` cannot work at all; it must not start again."""
        self._crew(gang).error = error
        self.lost(gang)

    def stumbled(self, gang: str, error: str) -> None:
        """Note the error that a worker of ``gang`` dies of, to say it should the gang not recover.

        The first one since it last got further stays: what the others die of then is that worker's death.
        """
        crew = self._crew(gang)
        crew.last = crew.last or error

    def claim(self, gang: str) -> P | Wait | None:
        """Lease a pack to ``gang``: the one it holds already (it was restarted), or the next that waits.

        Returns:
            The pack; ``"wait"`` while more may come, or others work on what is left, which may come back; None when
            the queue is closed and nothing is left.
        """
        entry = self._released(gang) or self._next()
        if entry is not None:
            self._lease(entry, gang)
            return entry.pack
        return None if self._closed and not self._leased else WAIT

    def progress(self, gang: str, pack: str, step: int, steps: int) -> None:
        """Note how far ``gang`` is with its pack; one that gets further than ever is not at fault for deaths before."""
        entry = self._entries.get(pack)
        if entry is None or entry.gang != gang:
            return
        entry.step, entry.steps = step, steps
        if step > entry.furthest:
            entry.furthest, entry.tries = step, 1
            self._got_further(gang, starts=1)

    def done(self, pack: str, errors: Mapping[str, str] | None = None) -> None:
        """Note that ``pack`` is finished and committed, but for the members that have ``errors``, by their names."""
        entry = self._entries.get(pack)
        if entry is None:
            self._early[pack] = dict(errors or {})
            return
        if pack in self._split:  # its halves are made, too, and come to the same
            return
        self._end(entry, starts=1)
        self._failed.pop(pack, None)
        if pack not in self._done:
            metrics.FINISHED.inc(tags={"how": "done"})
        self._done[pack] = dict(errors or {})

    def failed(self, pack: str, error: str) -> None:
        """Note that ``pack`` raised an error; it is not tried again. The first error stays."""
        entry = self._entries.get(pack)
        if entry is None:
            self._early.setdefault(pack, error)
        elif not self._has_ended(pack):
            self._end(entry, starts=0)  # several workers start again after it
            self._fail(pack, error)

    def split(self, pack: str, parts: Sequence[P]) -> None:
        """Put ``parts`` in the place of a pack that did not fit into memory; they wait behind the others.

        Several workers may find that, and the first one counts. A queue that has just started again, and has no such
        pack yet, will give it out as it was.
        """
        entry = self._entries.get(pack)
        if entry is not None and not self._has_ended(pack):
            self._end(entry, starts=0)  # its workers start again after it
            self._split[pack] = parts
            self.add(parts)

    def preempted(self, gang: str) -> None:
        """Note that ``gang`` died with a machine: that counts neither against its pack nor against itself.

        It is told before the gang starts again or is :meth:`lost`.
        """
        metrics.PREEMPTIONS.inc()
        crew, entry = self._crew(gang), self._leased.get(gang)
        if crew.preempted < PREEMPTIONS:
            crew.preempted, crew.starts, crew.last = crew.preempted + 1, max(crew.starts - 1, 0), ""
        if entry is not None and entry.preempted < PREEMPTIONS:
            entry.preempted, entry.tries = entry.preempted + 1, entry.tries - 1

    def lost(self, gang: str) -> None:
        """Note that ``gang`` is gone: its pack waits again, or has failed if it was tried often enough."""
        entry = self._released(gang)
        if entry is not None:
            self._wait(entry)

    def _crew(self, gang: str) -> _Crew:
        return self._crews.setdefault(gang, _Crew())

    def _got_further(self, gang: str, starts: int) -> None:
        crew = self._crew(gang)
        crew.starts, crew.last, crew.further = starts, "", crew.further + 1

    def _has_ended(self, pack: str) -> bool:
        return pack in self._done or pack in self._failed or pack in self._split

    def _fail(self, pack: str, error: str) -> None:
        metrics.FINISHED.inc(tags={"how": "failed"})
        self._failed[pack] = error

    def _wait(self, entry: _Entry[P]) -> None:
        heapq.heappush(self._waiting, (entry.turn, entry.pack.name))

    def _next(self) -> _Entry[P] | None:
        """Take the first pack that waits; one that ended while it waited is dropped."""
        while self._waiting:
            _, name = heapq.heappop(self._waiting)
            if not self._has_ended(name):
                return self._entries[name]
        return None

    def _lease(self, entry: _Entry[P], gang: str) -> None:
        entry.gang, entry.tries = gang, entry.tries + 1
        entry.step = entry.steps = 0
        self._leased[gang] = entry

    def _end(self, entry: _Entry[P], starts: int) -> None:
        """Take a pack that has ended from the gang that holds it, if one does."""
        if entry.gang is not None:
            self._got_further(entry.gang, starts)
            del self._leased[entry.gang]
            entry.gang = None

    def _released(self, gang: str) -> _Entry[P] | None:
        """Take the pack of a gang that died on it, and return it, unless it has failed now or there is none."""
        entry = self._leased.pop(gang, None)
        if entry is None:
            return None
        entry.gang = None
        if entry.tries < self.tries:
            metrics.RETRIES.inc()
            return entry
        last = self._crew(gang).last
        self._fail(entry.pack.name, f"its workers died {entry.tries} times while training it{_because(last)}")
        return None


def _because(error: str) -> str:
    return f" (last: {error})" if error else ""


PackQueue: Any = ray.remote(num_cpus=0, memory=1, max_restarts=-1, max_task_retries=-1)(Queue)
"""The queue as a Ray actor; a call to it waits where it has to start again.

Of an actor that takes nothing at all, not a byte, Ray lets any machine decide where it goes, whatever it asks for.
"""
