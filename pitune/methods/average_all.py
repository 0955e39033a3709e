"""The average of all sources' experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.merge import Merge

if TYPE_CHECKING:
    from pitune.methods.merge import Settings
    from pitune.plan.builder import Builder
    from pitune.tasks.task import Slice

OWN = (0.5, 0.0, 0.25, 0.75)


class AverageAll(Merge):
    """The average of all sources' experts.

    Settings, in order: the own expert's share: that of any other, then 0.5, 0, 0.25, 0.75.
    """

    name = "average_all"
    title = "average all"
    note = "the average of the experts of all sources of other tasks and the target's own, nothing tuned"
    rule = "average"

    def settings(self, plan: Builder, target: Slice) -> Settings:
        """Return the shares of the own expert."""
        count = plan.others(target)
        shares = dict.fromkeys((1 / (count + 1), *OWN))
        return [{"top_k": count, "own": share} for share in shares]
