"""Interpolation with learned weights (pi-Tuning, arXiv 2304.14381)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.interpolation.jobs import TuningJob
from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.interpolation.settings import InterpolationSettings
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


class Pi(Method):
    """Interpolation with learned weights (pi-Tuning, arXiv 2304.14381).

    Settings: ``sweep.top_k`` × ``sweep.temperature`` × ``sweep.own`` × ``sweep.rate``.
    """

    name = "pi"
    title = "pi"
    note = "the neighbours' experts and the own one, mixed with learned weights and tuned on the shots (pi-Tuning)"
    sees = "shots"
    stage = "interpolations"

    def artifacts(self, target: Slice) -> tuple[str, ...]:
        """Return where the interpolation and the table of its trials go."""
        return f"interpolations/{target}", f"sweeps/{target}.parquet"

    def tuning(self, plan: Builder) -> InterpolationSettings:
        """Return how it is tuned."""
        return plan.config.interpolation

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the search for the best interpolation of the nearest sources' experts and the target's own."""
        own, recipe = plan.expert(target), plan.recipe(target)
        settings, sweep = self.tuning(plan), plan.config.sweep
        near = plan.neighbours(target, max(sweep.top_k))
        inputs = {
            "makes": "interpolation",
            **plan.mixed(target, near),
            "recipe": plan.dump(recipe),
            "interpolation": {**plan.dump(plan.config.interpolation), "train": settings.train},
            "sweep": plan.dump(sweep),
        }
        job = TuningJob(self.artifacts(target), inputs, target, near, own.name, recipe, settings, sweep, self.name)
        needs = (own.name, *(one.expert for one in near))
        return plan.add(job, self.stage, "search", needs, sweep.combinations * recipe.steps * recipe.batch_size)
