"""Weights of sources' experts, searched without gradients (LoraHub, arXiv 2307.13269)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pitune.interpolation.jobs import WeightSearchJob
from pitune.methods.base import Method
from pitune.methods.merge import cost_of

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice

MOST = 20  # sources, as in the paper
PENALTIES = (0.05, 0.005, 0.5, 0.0)
BATCHES = 3  # of the recipe, which an evaluation sees: forward only, it then costs what a step does


def _search_weights(materials: Any, job: WeightSearchJob) -> None:
    from pitune.interpolation.gradientfree import search_weights  # brings torch, which a report does without

    search_weights(materials, job)


class LoraHub(Method):
    """Weights of sources' experts, searched without gradients (LoraHub, arXiv 2307.13269).

    Settings, in order: for each penalty on the weights of 0.05 (the paper's), 0.005, 0.5, 0: without the target's own
    expert (as in the paper), then with it: the nearest 20 sources (all, where there are fewer), then each k of
    ``sweep.top_k``. A setting evaluates as many weights as an interpolation takes steps, on three batches of shots at
    most.
    """

    name = "lorahub"
    title = "LoraHub"
    note = "sources' experts, added up with weights searched without gradients on the shots (LoraHub)"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the search for the weights."""
        own, recipe = plan.expert(target), plan.recipe(target)
        ks = dict.fromkeys((min(MOST, plan.others(target)), *plan.config.sweep.top_k))
        tried = [
            {"top_k": k, "own": mine, "penalty": penalty}
            for penalty, mine, k in itertools.product(PENALTIES, (False, True), ks)
        ][: plan.trials]
        near = plan.neighbours(target, max(setting["top_k"] for setting in tried))
        rows = BATCHES * recipe.batch_size
        inputs = {
            "makes": "weights",
            **plan.mixed(target, near),
            "tried": tried,
            "evaluations": recipe.steps,
            "rows": rows,
        }
        artifacts = (f"baselines/{target}/{self.name}",)
        job = WeightSearchJob(artifacts, inputs, target, near, own.name, tuple(tried), recipe.steps, rows)
        needs = (own.name, *(one.expert for one in near))
        seen = min(rows, plan.facts.size(target))
        cost = cost_of(plan, target, tried) + len(tried) * recipe.steps * seen / 2
        return plan.add(job, self.name, "task", needs, cost, _search_weights)
