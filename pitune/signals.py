"""Ctrl-C and SIGTERM end a run in the same way: in good order, from wherever the main thread is."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""SIGTERM is what Kubernetes, Slurm and spot machines send. SIGINT is ignored in what a script starts in background."""


class Stopped:
    """Which signal has come, if any.

    Attributes:
        number: of the first signal; None: none has come.
    """

    number: int | None = None

    @property
    def code(self) -> int | None:
        """The exit code of a process that ends for this signal."""
        return None if self.number is None else 128 + self.number

    def come(self, number: int, frame: FrameType | None) -> None:
        """Note a signal and raise KeyboardInterrupt in the main thread.

        SIGTERM is raised once: those that send it repeat it, and tidying up takes a while. Ctrl-C again means it.
        """
        again = self.number is not None
        self.number = self.number or number
        if number != signal.SIGTERM or not again:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stoppable() -> Iterator[Stopped]:
    """Have :data:`SIGNALS` raise KeyboardInterrupt inside the block; only in a process's main thread."""
    stopped = Stopped()
    before = {number: signal.signal(number, stopped.come) for number in SIGNALS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put back the handler of SIGTERM after the block: Ray sets one of its own when it connects."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: Ray could not set one either
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
