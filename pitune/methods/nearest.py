"""Tuning from the nearest neighbour's expert (SPoT, arXiv 2110.07904)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method
from pitune.tasks.task import Slice

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node


class Nearest(Method):
    """Tuning from the nearest neighbour's expert (SPoT, arXiv 2110.07904).

    It tries learning rates, in the order of :data:`pitune.plan.builder.RATES`; the first trial is a cell of the
    transfer matrix.
    """

    name = "nearest"
    title = "nearest"
    note = "started from the nearest neighbour's expert and tuned on the shots (SPoT)"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build experts of the target's slice that start from the nearest source's, and the choice among them."""
        (nearest,) = plan.neighbours(target, 1)
        pair = plan.pair(Slice.parse(nearest.slice), target)
        return plan.chosen(self.name, target, plan.at_rates(self.name, target, pair))
