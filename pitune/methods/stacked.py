"""What single, nearest and pi came to, averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pitune.interpolation.jobs import StackingJob
from pitune.methods.base import Method
from pitune.methods.nearest import Nearest
from pitune.methods.pi import Pi
from pitune.methods.single import Single

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice

MEMBERS = (Single(), Nearest(), Pi())


def _stack(materials: Any, job: StackingJob) -> None:
    from pitune.interpolation.stacking import stack  # brings torch, which a report does without

    stack(materials, job)


class Stacked(Method):
    """What ``single``, ``nearest`` and ``pi`` came to, averaged by the likelihood of validation examples.

    Nothing is tuned and nothing is tried: the weights follow from the losses that the three were chosen by (pseudo-BMA,
    arXiv 1704.02030). Where no other task helps, ``single`` is the likeliest, and has most of the weight.
    """

    name = "stacked"
    title = "stacked"
    note = "the average of what single, nearest and pi came to, each by how likely it makes the validation examples"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the three, and their average."""
        names = tuple(node.name for node in (method.build(plan, target) for method in MEMBERS) if node)
        max_rank = plan.config.interpolation.max_rank
        inputs = {
            "makes": "stack",
            "slice": str(target),
            "members": [[name, plan.fingerprint(name)] for name in names],
            "max_rank": max_rank,
        }
        job = StackingJob((f"baselines/{target}/{self.name}",), inputs, names, target, max_rank)
        return plan.add(job, self.name, "task", names, plan.facts.validated(target) / 2, _stack)
