"""The lease: one writer at a time where a place has no locks, as an object store has none.

A small file ``.lease`` names its owner, who renews it while he lives. Nobody can write "only if unchanged" there, so
two who find it free at the same moment may both write it: the one whose name stands there holds it, and every commit
looks (:meth:`Lease.check`). A holder that was silent too long and was taken over therefore stops at its next commit.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from pitune.errors import PituneError
from pitune.store.places import Place

LEASE = ".lease"
SECONDS = 60.0
"""How long a lease lasts that is not renewed; it is renewed four times as often."""
SETTLE = 0.5
"""Seconds after which a new holder looks whether another took the lease in the same moment."""


class Lease:
    """The right to write at a place; the counterpart of :class:`pitune.store.locks.FolderLock`.

    Args:
        place: where the lease lies.
        owner: who holds it, where a worker commits for that process.

    Attributes:
        owner: who must hold the lease while something is committed; None: nobody in particular.
    """

    def __init__(self, place: Place, owner: str | None = None) -> None:
        self.place = place
        self.owner = owner
        self.seconds = SECONDS

    def is_held(self) -> bool:
        """Say whether somebody holds the lease at this moment, as far as the two clocks agree."""
        found = self._read()
        return found is not None and _is_fresh(found)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease; a thread renews it.

        Raises:
            PituneError: another holds it.
            OSError: the place cannot be written.
        """
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        ended = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(ended,), name="pitune-lease", daemon=True)
        try:
            self._take()
            renewal.start()
            yield
        finally:
            ended.set()
            with contextlib.suppress(RuntimeError):  # never started
                renewal.join()
            with contextlib.suppress(OSError):
                if self._is_mine():
                    self.place.delete(LEASE)
            self.owner = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Make sure, before something is committed, that the owner still holds the lease.

        Raises:
            PituneError: another has it, or nobody.
        """
        if self.owner is not None and not self._is_mine():
            raise PituneError(
                f"study folder {self.place.root}: another pitune process took it over, or its run has ended, while "
                "this process gave no sign of life; nothing more is written here; wait for the other to end"
            )
        yield

    def quiet(self) -> contextlib.AbstractContextManager[None]:
        """Wait for nothing: without locks nobody knows whether another process commits."""
        return contextlib.nullcontext()

    def _take(self) -> None:
        found = self._read()
        if found is not None and not _is_fresh(found):  # but its owner's clock may be wrong: see whether it is renewed
            time.sleep(float(found["seconds"]) / 3)
            found = None if self._read() == found else found
        if found is None:
            self._write()
            time.sleep(SETTLE)
        if found is not None or not self._is_mine():
            raise PituneError(
                f"study folder {self.place.root}: another pitune process is working on it; wait for it to end "
                f"(its lease ends {self.seconds * 4 / 3:g} seconds after it was killed)"
            )

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(self.seconds / 4):
            with contextlib.suppress(OSError):  # tried again in time; if it never succeeds, the next commit says so
                if not self._is_mine():
                    return
                self._write()

    def _is_mine(self) -> bool:
        found = self._read()
        return found is not None and found["owner"] == self.owner

    def _read(self) -> dict[str, Any] | None:
        """Return what the lease says; None where there is none, or none that can be understood."""
        text = self.place.read_if_there(LEASE)
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            found = json.loads(text or b"")
            return {"owner": str(found["owner"]), "time": float(found["time"]), "seconds": float(found["seconds"])}
        return None

    def _write(self) -> None:
        content = {"owner": self.owner, "time": time.time(), "seconds": self.seconds}
        self.place.write(LEASE, json.dumps(content).encode())


def _is_fresh(found: dict[str, Any]) -> bool:
    return bool(abs(time.time() - found["time"]) < found["seconds"])
