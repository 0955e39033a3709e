"""What the methods that merge have in common: experts become one by a rule, nothing is tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pitune.interpolation.jobs import MergeJob
from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice

Settings = list[dict[str, Any]]


def _merge_best(materials: Any, job: MergeJob) -> None:
    from pitune.interpolation.merging import merge_best  # brings torch, which a report does without

    merge_best(materials, job)


class Merge(Method):
    """A merge of a target's nearest sources and its own expert, by the best of several settings on validation data.

    Attributes:
        rule: how experts become one, of :data:`pitune.interpolation.merging.RULES`.
        grid: what the rule takes, in the order in which it is tried.
    """

    sees = "shots"
    rule: ClassVar[str]
    grid: ClassVar[Sequence[Mapping[str, Any]]]

    def settings(self, plan: Builder, target: Slice) -> Settings:
        """Return the settings in the order in which they are tried: by default the grid, each with every ``top_k``."""
        ks = dict.fromkeys(plan.config.sweep.top_k)
        return [{"top_k": k, **one} for one in self.grid for k in ks]

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the merge by the first of the settings, as many as the study's budget has."""
        own, tried = plan.expert(target), self.settings(plan, target)[: plan.trials]
        near = plan.neighbours(target, max(setting["top_k"] for setting in tried))
        inputs = {"makes": "merge", **plan.mixed(target, near), "rule": self.rule, "tried": tried}
        job = MergeJob((f"baselines/{target}/{self.name}",), inputs, target, near, own.name, self.rule, tuple(tried))
        needs = (own.name, *(one.expert for one in near))
        return plan.add(job, self.name, "task", needs, cost_of(plan, target, tried), _merge_best)


def cost_of(plan: Builder, target: Slice, tried: Sequence[Mapping[str, Any]]) -> float:
    """Return the rows of validating settings, forward only."""
    return len(tried) * plan.facts.validated(target) / 2
