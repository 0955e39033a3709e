"""Logistic regression on the frozen backbone's embeddings (as in arXiv 2103.00020, A.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pitune.interpolation.jobs import ProbeJob
from pitune.methods.base import Method

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice

MOST = 15
"""Strengths that there are to try: seven, then two each at a half, a quarter, … of their distance, four times."""


def _fit_probe(materials: Any, job: ProbeJob) -> None:
    from pitune.interpolation.probe import fit_probe  # brings torch, which a report does without

    fit_probe(materials, job)


def _score_probes(materials: Any, jobs: Any) -> None:
    from pitune.interpolation.probe import score_probes

    score_probes(materials, jobs)


class LinearProbe(Method):
    """Logistic regression on the frozen backbone's embeddings of the shots (as in arXiv 2103.00020, A.3).

    No expert acts, and no label's text is read: it is what the shots say of the labels, and nothing else. It tries
    strengths of the L2 penalty, in the order of :func:`pitune.interpolation.probe.swept`. A caption of a retrieval task
    is a label with one example, which no classifier learns from others: those tasks have no row, nor have multilabel
    ones, whose labels exclude none of the others.
    """

    name = "linear_probe"
    title = "linear probe"
    note = "logistic regression on the frozen backbone's embeddings of the shots, no expert; of classification alone"
    sees = "shots"
    families = ("classification",)

    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Build the fit of the probe."""
        facts, trials = plan.facts, min(plan.trials, MOST)
        inputs = {
            "makes": "probe",
            "backbone": facts.base["backbone"],
            "slice": str(target),
            "task": plan.task(target.task).fingerprint,
            "trials": trials,
            "validation_examples": plan.config.training.validation_examples if target.shots is None else None,
        }
        job = ProbeJob((f"baselines/{target}/{self.name}",), inputs, target, trials)
        cost = (facts.size(target) + facts.validated(target)) / 2  # forward only
        return plan.add(job, self.name, "task", (), cost, _fit_probe)

    def score(self, plan: Builder, target: Slice, made: Node | None) -> Node:
        """Return the predictions of the probe."""
        return plan.score(self.name, target, made, _score_probes)
