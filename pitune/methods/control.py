"""What the controls of pi have in common: the same tuning by the same setting, of experts that should not help."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pitune.interpolation.jobs import ControlJob, Neighbour, TuningJob
from pitune.methods.base import Method
from pitune.methods.pi import Pi

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice


def _tune_control(materials: Any, job: ControlJob) -> None:
    from pitune.interpolation.target import tune_control  # brings torch, which a report does without

    tune_control(materials, job)


class Control(Method):
    """A control of pi: tuned once, by the k, the temperature, the own expert and the rate that pi chose for the target.

    Attributes:
        randomized: the experts give way to random ones of the same shapes and norms.
    """

    sees = "shots"
    control = True
    randomized: ClassVar[bool]

    @abstractmethod
    def sources(self, plan: Builder, target: Slice, k: int) -> tuple[Neighbour, ...]:
        """Return the sources in the order in which they are taken."""

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the control; it reads pi's setting when it is made."""
        tuned = Pi().build(plan, target)
        assert tuned is not None and isinstance(tuned.job, TuningJob)
        pi, sources = tuned.job, self.sources(plan, target, max(plan.config.sweep.top_k))
        inputs = {
            "makes": "control",
            **plan.mixed(target, sources),
            "of": plan.fingerprint(tuned.name),
            "randomized": self.randomized,
        }
        artifacts = (f"controls/{target}/{self.name.removeprefix('pi_')}",)
        parts = (pi.recipe, pi.interpolation, pi.sweep, self.name, tuned.name, self.randomized)
        job = ControlJob(artifacts, inputs, target, sources, pi.own, *parts)
        needs = (tuned.name, pi.own, *(one.expert for one in sources))
        return plan.add(job, "controls", "task", needs, pi.recipe.steps * pi.recipe.batch_size, _tune_control)
