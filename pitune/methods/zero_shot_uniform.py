"""The plain average of the nearest sources' experts, by label texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.zero_shot_transfer import ZeroShotTransfer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pitune.plan.builder import Builder


class ZeroShotUniform(ZeroShotTransfer):
    """The plain average of the nearest sources' experts, by label texts."""

    name = "zero_shot_uniform"
    title = "zero-shot uniform"
    note = "the plain average of the experts of the k sources with the nearest label texts, k the first of sweep.top_k"

    def weights(self, plan: Builder, similarities: Sequence[float]) -> list[float]:
        """Weigh all alike."""
        return [1 / len(similarities)] * len(similarities)
