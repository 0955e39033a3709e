"""Tuning from the nearest neighbour's expert (SPoT, arXiv 2110.07904)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


class Nearest(Method):
    """Tuning from the nearest neighbour's expert (SPoT, arXiv 2110.07904)."""

    name = "nearest"
    title = "nearest"
    note = "started from the nearest neighbour's expert and tuned on the shots (SPoT)"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build an expert of the target's slice that starts from the nearest source's."""
        (nearest,) = plan.neighbours(target, 1)
        return plan.expert(target, nearest.expert, f"baselines/{target}/nearest", stage=self.name)
