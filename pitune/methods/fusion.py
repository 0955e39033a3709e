"""Interpolation whose weights alone are learned, in the manner of AdapterFusion (arXiv 2005.00247)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pitune.methods.pi import Pi

if TYPE_CHECKING:
    from pitune.interpolation.settings import InterpolationSettings
    from pitune.plan.builder import Builder
    from pitune.tasks.task import Slice


class Fusion(Pi):
    """Interpolation whose weights alone are learned: the experts stay as they are, as in AdapterFusion (2005.00247).

    Where AdapterFusion attends anew for every input, there is one set of weights, so that the result is one expert.
    Settings: those of ``pi``.
    """

    name = "fusion"
    title = "fusion"
    note = (
        "the neighbours' experts and the own one, frozen, mixed with weights learned on the shots (AdapterFusion-like)"
    )
    stage = "fusion"

    def artifacts(self, target: Slice) -> tuple[str, ...]:
        """Return where the interpolation and the table of its trials go."""
        return f"baselines/{target}/fusion", f"sweeps/{target}/fusion.parquet"

    def tuning(self, plan: Builder) -> InterpolationSettings:
        """Return how it is tuned: the weights alone."""
        return plan.config.interpolation.model_copy(update={"train": "weights"})
