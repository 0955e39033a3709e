"""The nearest source's expert as it is, by label texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.zero_shot_transfer import ZeroShotTransfer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pitune.plan.builder import Builder


class ZeroShotNearest(ZeroShotTransfer):
    """The nearest source's expert as it is, by label texts."""

    name = "zero_shot_nearest"
    title = "zero-shot nearest"
    note = "the expert of the source whose label texts are the nearest, as it is"

    def weights(self, plan: Builder, similarities: Sequence[float]) -> list[float]:
        """Take the nearest alone."""
        return [1.0]
