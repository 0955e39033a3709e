"""What no expert touches runs once: its outputs are kept by content, in one cache for the whole process."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class FrozenCache:
    """Outputs of what no expert touches, by content; the oldest make room for new ones.

    First in, first out: which outputs are there depends on what was computed, not on what was asked for, so that the
    workers of a gang, which compute the same, keep the same.

    Args:
        most: bytes, for the whole process.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._held: dict[tuple[Any, ...], Tensor] = {}

    def get(self, key: tuple[Any, ...]) -> Tensor | None:
        """Return what is kept under ``key``, if it is there."""
        return self._held.get(key)

    def put(self, key: tuple[Any, ...], value: Tensor) -> None:
        """Keep ``value``, unless it is larger than all the room there is."""
        size = value.numel() * value.element_size()
        if key in self._held or size > self.most:
            return
        while self.bytes + size > self.most:
            oldest = self._held.pop(next(iter(self._held)))
            self.bytes -= oldest.numel() * oldest.element_size()
        self._held[key] = value
        self.bytes += size

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self.bytes = 0


CACHE = FrozenCache(1 << 30)
"""The one cache of this process."""
