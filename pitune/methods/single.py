"""One expert, trained on the target's shots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


class Single(Method):
    """One expert, trained on the target's shots.

    It tries learning rates, in the order of :data:`pitune.plan.builder.RATES`; the first trial is the target's own
    expert, which others build on.
    """

    name = "single"
    title = "single"
    note = "one expert, trained on the target's few shots"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build experts of the target's slice, and the choice among them."""
        return plan.chosen(self.name, target, plan.at_rates(self.name, target, plan.expert(target)))
