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

OWN = frozenset({"artifact", "fingerprint", "files", "versions", "written", "inputs", "trials", "steps", "seconds"})
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
    found: dict[str, Manifest] = {}
    for trial in job.tried:
        manifest = materials.store.manifest(trial)
        if manifest is None:
            raise PituneError(f"{materials.store.where(trial)}: is missing; run the study again")
        found[trial] = manifest
    losses = {trial: manifest["validation"]["loss"] for trial, manifest in found.items()}
    whole = [trial for trial in job.tried if losses[trial] is not None]
    if not whole:
        raise PituneError(f"all {len(losses)} trials failed; the first: {found[job.tried[0]]['error']}")
    best = min(whole, key=lambda trial: float(losses[trial]))  # of equals the first
    took = spent_together(list(found.values()))
    materials.store.commit(
        job.artifacts[0],
        {name: materials.store.read(best, name) for name in found[best]["files"]},
        job.fingerprint,
        inputs=job.inputs,
        **{name: fact for name, fact in found[best].items() if name not in OWN},
        chosen=best,
        tried=losses,
        trials=took.trials,
        steps=took.steps,
        seconds=took.seconds + time.perf_counter() - began,
    )
