"""A target's trials: what each tries, what it writes down, and which is committed. Without Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pitune.interpolation.jobs import TuningJob
from pitune.interpolation.settings import Own
from pitune.interpolation.target import attempt, interpolation_files
from pitune.interpolation.tune import Validation
from pitune.materials import Materials
from pitune.store import Store, table_bytes

METRIC = "validation"  # mean cross-entropy on the validation examples: finer than the accuracy of a few


@dataclass(frozen=True)
class Point:
    """What one trial tries."""

    job: TuningJob
    top_k: int
    temperature: float
    own: Own
    rate: float

    @property
    def name(self) -> str:
        """The trial's name within its target; no two temperatures or rates share one."""
        return f"k{self.top_k}-t{self.temperature!r}-{self.own}-r{self.rate!r}"

    @property
    def record(self) -> str:
        """Where the trial's scores are written down."""
        return f"{folder_of(self.job)}/{self.name}.json"

    @property
    def artifact(self) -> str:
        """Where the trial's interpolation goes when it reaches the last step."""
        return f"{folder_of(self.job)}/{self.name}"


def folder_of(job: TuningJob) -> str:
    """Return where a method's trials for a target are written down."""
    return f"sweeps/trials/{job.slice}-{job.method}"


def points(job: TuningJob) -> list[Point]:
    """Return every trial of a target, in the order in which they run."""
    return [
        Point(job, k, float(temperature), own, float(rate))
        for k in dict.fromkeys(job.sweep.top_k)
        for temperature in dict.fromkeys(job.sweep.temperature)
        for own in dict.fromkeys(job.sweep.own)
        for rate in dict.fromkeys(job.sweep.rate)
    ]


def run_trial(materials: Materials, point: Point, tell: Callable[[dict[str, float]], None]) -> None:
    """Run one trial: tell what is written down of it, then go on from there, writing down before each telling.

    Args:
        materials: what it works with.
        point: what it tries.
        tell: takes each score: the step, the validation loss and accuracy, and the seconds so far.
    """
    began = time.perf_counter()
    store, job = materials.store, point.job
    told = read_record(store, point)
    for score in told:
        tell(score)
    if _is_finished(point, told):
        return
    known = {score["step"] for score in told}

    def report(step: int, found: Validation) -> None:
        """Write a score down, then tell it: in this order, or a kill between the two would lose it."""
        if step in known:
            return
        told.append(
            {"step": step, METRIC: found.loss, "accuracy": found.accuracy, "seconds": time.perf_counter() - began}
        )
        if not _is_finished(point, told):  # the last score is told when the interpolation is committed
            _write_record(store, point, told)
            tell(told[-1])

    tuned = attempt(materials, job, point.top_k, point.temperature, point.own, point.rate, report)
    files, error = interpolation_files(materials, job, point.top_k, tuned)
    store.commit(point.artifact, files, job.fingerprint, validation=asdict(tuned.validation), rank_error=error)
    _write_record(store, point, told)
    tell(told[-1])


def read_record(store: Store, point: Point) -> list[dict[str, float]]:
    """Return the scores that are written down of a trial; none where the target's inputs have changed since."""
    if not store.is_current(point.record, point.job.fingerprint):
        return []
    return list(json.loads(store.read(point.record)))


def commit_best(store: Store, job: TuningJob) -> None:
    """Commit a target's best finished trial as its interpolation, and the table of all its trials."""
    tried = [(point, read_record(store, point)) for point in points(job)]
    # ASHA stops no trial before another has got as far, so at least one has reached the last step.
    finished = [(point, store.manifest(point.artifact) or {}) for point, told in tried if _is_finished(point, told)]
    best, trial = min(finished, key=lambda pair: pair[1]["validation"]["loss"])
    store.commit(
        job.artifacts[0],
        {name: store.read(best.artifact, name) for name in trial["files"]},
        job.fingerprint,
        inputs=job.inputs,
        slice=str(job.slice),
        members=job.members(best.top_k),
        top_k=best.top_k,
        temperature=best.temperature,
        own=best.own,
        rate=best.rate,
        validation=trial["validation"],
        rank_error=trial["rank_error"],
        trials=len(tried),
        steps=sum(int(told[-1]["step"]) for _, told in tried),
        seconds=sum(told[-1]["seconds"] for _, told in tried),
    )
    rows = [row for point, told in tried for row in _rows(point, told, best)]
    store.commit(job.artifacts[1], {"": table_bytes(rows)}, job.fingerprint, inputs=job.inputs)
    for point, _ in tried:
        store.discard(point.record)  # first: a record without its interpolation would not be made again
    store.remove(folder_of(job))


def _rows(point: Point, told: list[dict[str, float]], best: Point) -> list[dict[str, Any]]:
    """Return a trial's rows of the sweep's table."""
    facts = {name: getattr(point, name) for name in ("top_k", "temperature", "own", "rate")}
    state = {"state": "finished" if _is_finished(point, told) else "stopped", "chosen": point == best}
    return [{"trial": point.name, **facts, **score, **state} for score in told]


def _is_finished(point: Point, told: list[dict[str, float]]) -> bool:
    return bool(told) and told[-1]["step"] == point.job.recipe.steps


def _write_record(store: Store, point: Point, told: list[dict[str, float]]) -> None:
    store.commit(point.record, {"": json.dumps(told).encode()}, point.job.fingerprint)
