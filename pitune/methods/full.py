"""An expert of all the data: the ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method
from pitune.methods.single import Single

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


class Full(Method):
    """An expert of all the data: the ceiling. Where the target itself is a full slice, that is ``single``."""

    name = "full"
    title = "full data"
    note = "an expert trained on all the task's training data: the ceiling"
    sees = "all"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the expert of the full slice of the target's task; for a full target, what ``single`` builds."""
        if target.shots is None:
            return Single().build(plan, target)
        return plan.expert(plan.ceiling(target))
