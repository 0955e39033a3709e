"""The nearest sources' experts, weighted by the similarities of their label texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pitune.methods.zero_shot_transfer import ZeroShotTransfer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pitune.plan.builder import Builder


class ZeroShotSimilarity(ZeroShotTransfer):
    """The nearest sources' experts, weighted by softmax(similarity of the label texts / temperature)."""

    name = "zero_shot_similarity"
    title = "zero-shot similarity"
    note = (
        "the experts of the k sources with the nearest label texts, weighted by softmax(similarity / temperature), k "
        "and temperature the first of the sweep"
    )

    def weights(self, plan: Builder, similarities: Sequence[float]) -> list[float]:
        """Weigh by softmax(similarity / temperature)."""
        temperature = plan.config.sweep.temperature[0]
        parts = [math.exp((one - similarities[0]) / temperature) for one in similarities]  # the first is the largest
        return [part / sum(parts) for part in parts]
