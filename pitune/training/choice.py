"""The choice among the trials of a method: the expert with the lowest validation loss, and what all of them took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pitune.errors import PituneError
from pitune.store import Job
from pitune.store.manifest import Manifest

if TYPE_CHECKING:
    from pitune.materials import Materials

OWN = frozenset(
    {"artifact", "fingerprint", "files", "versions", "written", "inputs", "validation", "trials", "steps", "seconds"}
)
"""What a manifest says of its artifact alone; a choice takes over the rest from the trial that it chose."""


@dataclass(frozen=True)
class ChoiceJob(Job):
    """A method's trials for one target (experts, artifacts), in the order in which equal ones are preferred."""

    tried: tuple[str, ...]


class Spent(NamedTuple):
    """What making an expert took: trials, optimizer steps over all of them, seconds."""

    trials: int
    steps: int
    seconds: float


def spent(manifest: Mapping[str, Any]) -> Spent:
    """Return what an expert's manifest says that it took; an older one says its steps in its recipe only."""
    steps = int(manifest.get("steps", manifest.get("recipe", {}).get("steps", 0)))
    return Spent(int(manifest.get("trials", steps > 0)), steps, float(manifest.get("seconds", 0.0)))


def spent_together(manifests: Sequence[Mapping[str, Any]]) -> Spent:
    """Return what several experts took together."""
    trials, steps, seconds = zip(*map(spent, manifests), strict=True)
    return Spent(sum(trials), sum(steps), sum(seconds))


def choose(materials: Materials, job: ChoiceJob) -> None:
    """Commit a copy of the trial with the lowest validation loss; a trial that failed has none.

    Raises:
        PituneError: a trial is missing, or all have failed.
    """
    began = time.perf_counter()
    found = manifests_of(materials, job.tried)
    commit_best(materials, job, found, {trial: manifest["validation"] for trial, manifest in found.items()}, began)


def manifests_of(materials: Materials, tried: Sequence[str]) -> dict[str, Manifest]:
    """Return the manifest of each of several trials.

    Raises:
        PituneError: one is missing.
    """
    found: dict[str, Manifest] = {}
    for trial in tried:
        manifest = materials.store.manifest(trial)
        if manifest is None:
            raise PituneError(f"{materials.store.where(trial)}: is missing; run the study again")
        found[trial] = manifest
    return found


def commit_best(
    materials: Materials,
    job: ChoiceJob,
    found: Mapping[str, Manifest],
    validations: Mapping[str, Mapping[str, float | None]],
    began: float,
) -> None:
    """Commit a copy of the trial with the lowest loss, of equals the first.

    Args:
        materials: the study's.
        job: the choice.
        found: the manifest of each trial.
        validations: the validation ``loss`` and ``accuracy`` of each; no loss where it is no number.
        began: when choosing began, by ``time.perf_counter``.

    Raises:
        PituneError: no loss is a number.
    """
    losses = {trial: validations[trial]["loss"] for trial in job.tried}
    known = {trial: loss for trial, loss in losses.items() if loss is not None}
    if not known:
        first = found[job.tried[0]].get("error", "its validation loss is no number")
        raise PituneError(f"all {len(losses)} trials failed; the first: {first}")
    best = min(known, key=lambda trial: known[trial])
    took = spent_together(list(found.values()))
    materials.store.commit(
        job.artifacts[0],
        {name: materials.store.read(best, name) for name in found[best]["files"]},
        job.fingerprint,
        inputs=job.inputs,
        **{name: fact for name, fact in found[best].items() if name not in OWN},
        validation=dict(validations[best]),
        chosen=best,
        tried=losses,
        trials=took.trials,
        steps=took.steps,
        seconds=took.seconds + time.perf_counter() - began,
    )
