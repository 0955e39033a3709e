"""The choice among experts that several targets share: what is best for one of them."""

from __future__ import annotations

import math
import time

from pitune.experts import Bank
from pitune.interpolation.jobs import SharedChoiceJob
from pitune.interpolation.tune import Setting, validate_all
from pitune.materials import Materials
from pitune.training.choice import commit_best, manifests_of


def choose_shared(materials: Materials, job: SharedChoiceJob) -> None:
    """Commit a copy of the expert with the lowest loss on the target's own validation examples, all in one pass.

    What their manifests say of validation is of a mixture of all the targets that share them.

    Raises:
        PituneError: an expert is missing, or none has a loss that is a number.
    """
    began = time.perf_counter()
    found = manifests_of(materials, job.tried)
    whole = [trial for trial in job.tried if "error" not in found[trial]]
    validations: dict[str, dict[str, float | None]] = {trial: {"loss": None, "accuracy": None} for trial in job.tried}
    if whole:
        bank = Bank(materials.kind, [materials.expert(trial) for trial in whole]).to(materials.backbone.device)
        rows = materials.rows(((job.slice, 1.0),), "validation")
        for trial, score in zip(whole, validate_all(Setting.of(materials), bank, len(whole), rows), strict=True):
            if math.isfinite(score.loss):
                validations[trial] = {"loss": score.loss, "accuracy": score.accuracy}
    commit_best(materials, job, found, validations, began)
