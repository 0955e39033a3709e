"""The plain average of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pitune.interpolation.jobs import AverageJob
from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


def _average(materials: Any, job: AverageJob) -> None:
    from pitune.interpolation.target import average  # brings torch, which a report does without

    average(materials, job)


class Uniform(Method):
    """The plain average of experts."""

    name = "uniform"
    title = "uniform"
    note = "the plain average of the neighbours' experts and the target's own, nothing tuned"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the average; it depends on no learning rate, and so on none of the interpolation's settings."""
        own, top_k = plan.expert(target), plan.config.sweep.top_k
        near = plan.neighbours(target, max(top_k))
        inputs = {"makes": "average", **plan.mixed(target, near), "top_k": list(top_k)}
        job = AverageJob((f"baselines/{target}/uniform",), inputs, target, near, own.name, top_k)
        needs = (own.name, *(one.expert for one in near))
        return plan.add(job, self.name, "task", needs, make=_average)
