"""What the rows of zero-shot transfer have in common: experts of other tasks, averaged, no data of the target.

It is the zero-shot regime of arXiv 2304.14381, with the sources ranked by what is known of a task without data.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pitune.interpolation.jobs import AverageJob
from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice

DIGITS = 10  # of a weight, as of a similarity: what is beyond depends on the machine


def _average(materials: Any, job: AverageJob) -> None:
    from pitune.interpolation.merging import average  # brings torch, which a report does without

    average(materials, job)


class ZeroShotTransfer(Method):
    """An average of the experts of the sources whose label texts are nearest to the target's.

    Nothing is chosen, for there is nothing to validate on: k and the temperature are the first of the sweep. What is
    known of a target is its task's label texts, so that all targets of a task share one expert and one score.
    """

    sees = "nothing"
    similarity = "labels"

    @abstractmethod
    def weights(self, plan: Builder, similarities: Sequence[float]) -> list[float]:
        """Return the weights of the nearest sources, one for each that is taken.

        Args:
            plan: whose configuration has the temperature.
            similarities: of the k nearest, nearest first.
        """

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the average for the target's task."""
        first = plan.facts.first(target.task)
        near = plan.neighbours(first, plan.config.sweep.top_k[0], self.similarity)
        weights = [round(weight, DIGITS) for weight in self.weights(plan, [one.similarity for one in near])]
        near = near[: len(weights)]
        sources = zip(near, weights, strict=True)
        inputs = {
            "makes": "average",
            "sources": [[one.slice, weight, plan.fingerprint(one.expert)] for one, weight in sources],
        }
        job = AverageJob((f"baselines/{target.task}/{self.name}",), inputs, near, tuple(weights))
        return plan.add(job, self.name, "task", [one.expert for one in near], 0, _average)
