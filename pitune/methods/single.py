"""One expert, trained on the target's shots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


class Single(Method):
    """One expert, trained on the target's shots."""

    name = "single"
    title = "single"
    note = "one expert, trained on the target's few shots"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the expert of the target's slice."""
        return plan.expert(target)
