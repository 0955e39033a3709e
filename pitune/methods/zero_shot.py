"""The frozen backbone alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


class ZeroShot(Method):
    """The frozen backbone alone."""

    name = "zero_shot"
    title = "zero-shot"
    note = "the frozen backbone alone"
    sees = "nothing"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build nothing."""
        return None
