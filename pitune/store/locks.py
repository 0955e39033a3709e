"""The locks of a local study: one process works on it, and one artifact at a time is moved into place.

The system frees both however their holder ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pitune.errors import PituneError
from pitune.store.places import Place

LOCK = ".lock"
COMMIT_LOCK = ".commit.lock"


class FolderLock:
    """The right to write in a local folder; the counterpart of :class:`pitune.store.lease.Lease`."""

    owner: str | None = None

    def __init__(self, place: Place) -> None:
        self._root = place.root

    def is_held(self) -> bool:
        """Say whether some process holds the folder at this moment."""
        if not Path(self._root, LOCK).exists():
            return False
        lock = FileLock(Path(self._root, LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a study that only others may write
            return False
        lock.release()
        return False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, which is made if it is not there.

        Raises:
            PituneError: another process holds it.
            OSError: it cannot be made or written.
        """
        Path(self._root).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(self._root, LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise PituneError(
                f"folder {self._root}: another pitune process is working on it; wait for it to end"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other process moves files of an artifact, and keep the others waiting."""
        with FileLock(Path(self._root, COMMIT_LOCK)).acquire(poll_interval=0.002):
            yield

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Wait until no other process moves files, if any ever did and this one may know it."""
        with contextlib.ExitStack() as stack:
            if Path(self._root, COMMIT_LOCK).exists():
                with contextlib.suppress(OSError):  # a study that only others may write
                    stack.enter_context(self.turn())
            yield
