"""The scaled sum of task vectors (task arithmetic, arXiv 2212.04089)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.merge import Merge

if TYPE_CHECKING:
    from pitune.methods.merge import Settings
    from pitune.plan.builder import Builder
    from pitune.tasks.task import Slice

SCALES = (0.3, 0.5, 0.2, 1.0, 0.1, 0.7, 0.4, 0.05)


class TaskArithmetic(Merge):
    """The scaled sum of task vectors (task arithmetic, arXiv 2212.04089).

    Settings, in order: for each scale of 0.3, 0.5, 0.2, 1, 0.1, 0.7, 0.4, 0.05, each k of
    ``sweep.top_k``.
    """

    name = "task_arithmetic"
    title = "task arithmetic"
    note = "the common start plus a scaled sum of the neighbours' and the own expert's task vectors (task arithmetic)"
    rule = "sum"

    def settings(self, plan: Builder, target: Slice) -> Settings:
        """Return scales and neighbours."""
        ks = dict.fromkeys(plan.config.sweep.top_k)
        return [{"top_k": k, "scale": scale} for scale in SCALES for k in ks]
