"""Single, nearest and pi, averaged over folds by what these hold out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pitune.interpolation.jobs import CrossfitJob, TuningJob
from pitune.methods.base import Method
from pitune.methods.pi import Pi
from pitune.methods.stacked import MEMBERS
from pitune.training.pack import PACK_SIZE

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


def _crossfit(materials: Any, job: CrossfitJob) -> None:
    from pitune.interpolation.crossfit import crossfit  # brings torch, which a report does without

    crossfit(materials, job)


class Crossfit(Method):
    """``single``, ``nearest`` and ``pi``, averaged over a target's folds by every example that it has.

    Each is fitted again on the folds of the target's shots (``sweep.folds``), and has a share in the average by how
    likely it makes what these hold out.
    """

    name = "crossfit"
    title = "cross-fit"
    note = "single, nearest and pi, averaged over folds of the shots by how likely each makes what these hold out"
    sees = "shots"

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the three, and their average.

        Raises:
            PituneError: the target has fewer shots than there are folds.
        """
        plan.facts.check_folds(target)
        names = tuple(node.name for node in (method.build(plan, target) for method in MEMBERS) if node)
        tuned = Pi().build(plan, target)
        assert tuned is not None and isinstance(tuned.job, TuningJob)
        pi, folds = tuned.job, plan.config.sweep.folds if target.shots else 0
        together = plan.config.training.pack_size or PACK_SIZE
        inputs = {
            "makes": "cross-fit",
            "slice": str(target),
            "members": [[name, plan.fingerprint(name)] for name in names],
            "folds": folds,
            "shares": "pseudo-BMA+",
        }
        parts = (pi.neighbours, pi.own, pi.recipe, pi.interpolation, pi.sweep, self.name, names, folds, together)
        job = CrossfitJob((f"baselines/{target}/{self.name}",), inputs, target, *parts)
        needs = (*names, *(near.expert for near in pi.neighbours))
        cost = folds * len(names) * pi.recipe.steps * pi.recipe.batch_size + plan.facts.validated(target) / 2
        return plan.add(job, self.name, "task", needs, cost, _crossfit)
