"""The neighbours' experts, weighted by their similarities."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pitune.methods.merge import Merge

if TYPE_CHECKING:
    from pitune.methods.merge import Settings
    from pitune.plan.builder import Builder
    from pitune.tasks.task import Slice


class Similarity(Merge):
    """The neighbours' experts, weighted by their similarities.

    It is where an interpolation starts. Settings, in order: ``sweep.top_k`` × ``sweep.temperature`` × ``sweep.own``,
    the last one fastest. A fresh own expert adds nothing and takes its weight, so the sources' updates become smaller.
    """

    name = "similarity"
    title = "similarity"
    note = (
        "the neighbours' experts and the own one with fixed weights, softmax(similarity / temperature), nothing tuned"
    )
    rule = "softmax"

    def settings(self, plan: Builder, target: Slice) -> Settings:
        """Return every combination of the sweep."""
        sweep = plan.config.sweep
        lists = (dict.fromkeys(tried) for tried in (sweep.top_k, sweep.temperature, sweep.own))
        return [{"top_k": k, "temperature": heat, "own": own} for k, heat, own in itertools.product(*lists)]
