"""One expert of many tasks' data, tuned on the target's shots (as in arXiv 2211.11720)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


class Multitask(Method):
    """One expert of many tasks' data, tuned on the target's shots (as in arXiv 2211.11720).

    It tries learning rates of the tuning, in the order of :data:`pitune.plan.builder.RATES`.
    """

    name = "multitask"
    title = "multitask"
    note = "one expert of all other tasks' data mixed, tuned on the shots"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build experts of the target's slice that start from the mixture of the others, and the choice among them."""
        start = self._mixture(plan, target.task).name
        first = plan.expert(target, start, f"trials/{target}/{self.name}/rate-1", stage=self.name)
        return plan.chosen(self.name, target, plan.at_rates(self.name, target, first))

    def _mixture(self, plan: Builder, task: str) -> Node:
        """Return the expert of all sources of other tasks: all targets of the task start from it."""
        artifact = f"mixtures/{task}"
        if artifact in plan.nodes:
            return plan.nodes[artifact]
        others = [source for source in plan.facts.sources if source.task != task]
        shares = plan.config.multitask.shares([plan.facts.size(source) for source in others])
        data = tuple(zip(others, shares, strict=True))
        return plan.expert(data, artifact=artifact, recipe=plan.config.training.full, stage=self.name)
