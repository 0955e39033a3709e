"""The sweep: Ray Tune searches top-k, temperature and the own expert's start for every target.

One Tuner holds the trials of all targets, so that its few actors are started once. Each target has an ASHA of its own
and its trials run one after another, so that what ASHA stops does not depend on who is faster. A trial writes down
every score before it reports it. Started again after a crash, it reports what is written without computing it, so that
ASHA decides as it did before.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from pitune.errors import one_line
from pitune.interpolation.jobs import TuningJob
from pitune.interpolation.settings import Own
from pitune.interpolation.target import attempt, interpolation_files
from pitune.interpolation.tune import Validation
from pitune.materials import Materials
from pitune.runtime.fanout import opened
from pitune.runtime.settings import RuntimeSettings
from pitune.store import Store, table_bytes

METRIC = "validation"  # mean cross-entropy on the validation examples: finer than the accuracy of a few


@dataclass(frozen=True)
class Point:
    """What one trial tries."""

    target: TuningJob
    top_k: int
    temperature: float
    own: Own

    @property
    def name(self) -> str:
        """The trial's name within its target."""
        return f"k{self.top_k}-t{self.temperature:g}-{self.own}"

    @property
    def record(self) -> str:
        """Where the trial's scores are written down."""
        return f"sweeps/trials/{self.target.slice}/{self.name}.json"

    @property
    def artifact(self) -> str:
        """Where the trial's interpolation goes when it reaches the last step."""
        return f"sweeps/trials/{self.target.slice}/{self.name}"


def points(target: TuningJob) -> list[Point]:
    """Return every trial of a target, in the order in which they run."""
    return [
        Point(target, k, temperature, own)
        for k in dict.fromkeys(target.sweep.top_k)
        for temperature in dict.fromkeys(target.sweep.temperature)
        for own in dict.fromkeys(target.sweep.own)
    ]


class OneByOne(Searcher):
    """Hands out the trials of each target one after another, those of different targets side by side.

    Args:
        trials: every target's trials in their order, by its name.
    """

    def __init__(self, trials: Mapping[str, Sequence[Point]]) -> None:
        super().__init__(metric=METRIC, mode="min")  # type: ignore[no-untyped-call]
        self._waiting = {target: list(points) for target, points in trials.items()}
        self._running: dict[str, str] = {}  # target by trial

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial of the first target that has none under way; None where all have one.

        ``FINISHED`` where none is left.
        """
        left = [target for target, points in self._waiting.items() if points]
        free = [target for target in left if target not in self._running.values()]
        if not free:
            return None if left else Searcher.FINISHED
        self._running[trial_id] = free[0]
        return {"point": self._waiting[free[0]].pop(0)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Free the trial's target."""
        del self._running[trial_id]

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: what the trials wrote down is all that a sweep goes on from."""


class PerTarget(FIFOScheduler):
    """One ASHA for each target."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._schedulers: dict[str, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Hand a new trial to its target's ASHA."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let the target's ASHA go on with the trial or stop it."""
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Tell the target's ASHA."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the target's ASHA."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the target's ASHA."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Trial) -> ASHAScheduler:
        target = trial.config["point"].target
        chosen, steps, sweep = target.slice, target.recipe.steps, target.sweep
        return self._schedulers.setdefault(
            str(chosen),
            ASHAScheduler(
                time_attr="step",
                metric=METRIC,
                mode="min",
                max_t=steps,
                grace_period=min(sweep.validate_every, steps),
                reduction_factor=sweep.reduction_factor,
            ),
        )


def search(
    targets: Sequence[TuningJob],
    materials: Materials,
    settings: RuntimeSettings,
    storage: str,
    on_progress: Callable[[int, int, Sequence[str]], None],
) -> dict[str, str]:
    """Search every target's combinations and commit the best interpolation of each.

    Args:
        targets: the targets.
        materials: what the trials work with.
        settings: what a trial takes of the cluster.
        storage: a local folder for Ray Tune's own files.
        on_progress: called with (trials done, trials in all, names of those running).

    Returns:
        The error of each target that had a trial fail, in one line; it is not committed, its other trials are kept.
    """
    trials = {str(target.slice): points(target) for target in targets}
    count = sum(map(len, trials.values()))
    shared = ray.put(materials)
    resources: dict[str, float] = {"cpu": settings.cpus_per_worker, "gpu": settings.gpus_per_worker}

    def run(config: dict[str, Any]) -> None:
        torch.set_num_threads(settings.cpus_per_worker)
        run_trial(opened(ray.get(shared)), config["point"])

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose tables ignore verbose=0
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the study, not the sweep alone
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the trials' scores are in the store
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(run, resources),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(OneByOne(trials), max_concurrent=len(targets)),
            scheduler=PerTarget(),
            reuse_actors=True,
            num_samples=count,
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{time.time_ns()}",
            storage_path=storage,
            verbose=0,
            callbacks=[_Progress(count, on_progress)],
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    )
    results = tuner.fit()
    errors = {
        str(r.config["point"].target.slice): one_line(r.error)
        for r in map(results.__getitem__, range(len(results)))
        if r.error and r.config
    }
    for target in targets:
        if str(target.slice) not in errors:
            commit_best(materials, target)
    return errors


def run_trial(materials: Materials, point: Point) -> None:
    """Run one trial: report what is written down of it, then go on from there, writing down before each report."""
    began = time.perf_counter()
    steps = point.target.recipe.steps
    told = read_record(materials.store, point)
    for score in told:
        tune.report(score)
    if told and told[-1]["step"] == steps:
        return
    known = {score["step"] for score in told}

    def report(step: int, found: Validation) -> None:
        """Write a score down, then report it: in this order, or a kill between the two would lose it."""
        if step in known:
            return
        told.append(
            {"step": step, METRIC: found.loss, "accuracy": found.accuracy, "seconds": time.perf_counter() - began}
        )
        if step < steps:  # the last score is reported when the interpolation is committed
            _write_record(materials.store, point, told)
            tune.report(told[-1])

    tuned = attempt(materials, point.target, point.top_k, point.temperature, point.own, report)
    files, error = interpolation_files(materials, point.target, point.top_k, tuned)
    materials.store.commit(
        point.artifact, files, point.target.fingerprint, validation=asdict(tuned.validation), rank_error=error
    )
    _write_record(materials.store, point, told)
    tune.report(told[-1])


def read_record(store: Store, point: Point) -> list[dict[str, float]]:
    """Return the scores that are written down of a trial; none where the target's inputs have changed since."""
    if not store.is_current(point.record, point.target.fingerprint):
        return []
    return list(json.loads(store.read(point.record)))


def _write_record(store: Store, point: Point, told: list[dict[str, float]]) -> None:
    store.commit(point.record, {"": json.dumps(told).encode()}, point.target.fingerprint)


def commit_best(materials: Materials, target: TuningJob) -> None:
    """Commit a target's best finished trial as its interpolation, and the table of all its trials."""
    store, steps = materials.store, target.recipe.steps
    tried = [(point, read_record(store, point)) for point in points(target)]
    # ASHA stops no trial before another has got as far, so at least one has reached the last step.
    finished = [(point, store.manifest(point.artifact) or {}) for point, told in tried if told[-1]["step"] == steps]
    best, trial = min(finished, key=lambda pair: pair[1]["validation"]["loss"])
    rows = [
        {"trial": point.name, "top_k": point.top_k, "temperature": point.temperature, "own": point.own, **score}
        | {"state": "finished" if told[-1]["step"] == steps else "stopped", "chosen": point == best}
        for point, told in tried
        for score in told
    ]
    store.commit(
        target.artifacts[0],
        {name: store.read(best.artifact, name) for name in trial["files"]},
        target.fingerprint,
        inputs=target.inputs,
        slice=str(target.slice),
        members=target.members(best.top_k),
        top_k=best.top_k,
        temperature=best.temperature,
        own=best.own,
        validation=trial["validation"],
        rank_error=trial["rank_error"],
        seconds=sum(told[-1]["seconds"] for _, told in tried),
    )
    store.commit(target.artifacts[1], {"": table_bytes(rows)}, target.fingerprint, inputs=target.inputs)
    for point, _ in tried:
        store.discard(point.record)  # first: a record without its interpolation would not be made again
    store.remove(f"sweeps/trials/{target.slice}")


class _Progress(tune.Callback):
    """Tells how many trials have ended."""

    def __init__(self, trials: int, on_progress: Callable[[int, int, Sequence[str]], None]) -> None:
        self._trials, self._tell = trials, on_progress

    def __reduce__(self) -> Any:
        # Ray Tune pickles its callbacks into the experiment's folder; a progress display cannot be.
        return _Progress, (self._trials, _untold)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tell."""
        ended = sum(trial.status in (Trial.TERMINATED, Trial.ERROR) for trial in trials)
        running = [_target(trial) for trial in trials if trial.status == Trial.RUNNING]
        self._tell(ended, self._trials, running)


def _untold(done: int, of: int, running: Sequence[str]) -> None:
    """Tell nobody."""


def _target(trial: Trial) -> str:
    return str(trial.config["point"].target.slice)
