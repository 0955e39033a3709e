"""The plain average of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.merge import Merge

if TYPE_CHECKING:
    from pitune.methods.merge import Settings
    from pitune.plan.builder import Builder
    from pitune.tasks.task import Slice


class Uniform(Merge):
    """The plain average of experts.

    Settings, in order: the k of ``sweep.top_k``, the smallest first.
    """

    name = "uniform"
    title = "uniform"
    note = "the plain average of the neighbours' experts and the target's own, nothing tuned"
    rule = "average"

    def settings(self, plan: Builder, target: Slice) -> Settings:
        """Return the neighbours to average, fewest first."""
        return [{"top_k": k} for k in sorted(set(plan.config.sweep.top_k))]
