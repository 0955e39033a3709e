"""All of the backbone's weights, tuned: what parameter-efficient methods are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice

RATE = 0.02
"""The first learning rate that is tried, as a share of the recipe's, which is an expert's."""


class FineTuning(Method):
    """All of the backbone's weights, tuned on the shots over the same rows in the same order as the others.

    It tries a fiftieth of the recipe's learning rate, then shares of that, in the order of
    :data:`pitune.plan.builder.RATES`. Weight decay pulls towards the weights that it starts from.
    """

    name = "fine_tuning"
    title = "fine-tuning"
    note = "all of the backbone's weights, tuned on the shots"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build changes of all weights at several learning rates, and the choice among them."""
        from pitune.experts import Whole  # brings torch, which a report does without

        recipe = plan.facts.at_rate(plan.recipe(target), RATE)
        artifact = f"trials/{target}/{self.name}/rate-1"
        first = plan.expert(target, None, artifact, recipe=recipe, kind=Whole(), stage=self.name)
        return plan.chosen(self.name, target, plan.at_rates(self.name, target, first))
