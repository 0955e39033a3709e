"""A control of pi: random experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.control import Control

if TYPE_CHECKING:
    from pitune.interpolation.jobs import Neighbour
    from pitune.plan.builder import Builder
    from pitune.tasks.task import Slice


class PiRandom(Control):
    """A control of pi: random experts."""

    name = "pi_random"
    title = "pi random"
    note = (
        "a control: as pi, with its setting, but for the neighbours' experts random ones of the same shapes and norms"
    )
    randomized = True

    def sources(self, plan: Builder, target: Slice, k: int) -> tuple[Neighbour, ...]:
        """Return pi's own, whose shapes and norms the random ones have."""
        return plan.neighbours(target, k)
