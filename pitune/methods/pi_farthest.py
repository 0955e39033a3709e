"""A control of pi: the farthest sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.control import Control

if TYPE_CHECKING:
    from pitune.interpolation.jobs import Neighbour
    from pitune.plan.builder import Builder
    from pitune.tasks.task import Slice


class PiFarthest(Control):
    """A control of pi: the farthest sources."""

    name = "pi_farthest"
    title = "pi farthest"
    note = "a control: as pi, with its setting, but of the sources that are farthest from the target"
    randomized = False

    def sources(self, plan: Builder, target: Slice, k: int) -> tuple[Neighbour, ...]:
        """Return the farthest sources, the farthest first."""
        return plan.farthest(target, k)
