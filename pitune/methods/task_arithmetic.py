"""The scaled sum of task vectors (task arithmetic, arXiv 2212.04089)."""

from __future__ import annotations

from pitune.methods.merge import Merge

SCALES = (0.3, 0.5, 0.2, 1.0, 0.1, 0.7, 0.4, 0.05)


class TaskArithmetic(Merge):
    """The scaled sum of task vectors (task arithmetic, arXiv 2212.04089).

    Settings, in order: for each scale of 0.3, 0.5, 0.2, 1, 0.1, 0.7, 0.4, 0.05, each k of ``sweep.top_k``.
    """

    name = "task_arithmetic"
    title = "task arithmetic"
    note = "the common start plus a scaled sum of the neighbours' and the own expert's task vectors (task arithmetic)"
    rule = "sum"
    grid = tuple({"scale": scale} for scale in SCALES)
