"""The search: Ray Tune tries top-k, temperature, own experts and learning rates for every target.

One Tuner, in a thread of the driver, holds the trials of all targets that are ready, so that its few actors are started
once; it ends when none is left. Each target has an ASHA of its own and its trials run one after another, so that what
ASHA stops does not depend on who is faster. A trial writes down every score before it reports it. Started again after a
crash, it reports what is written without computing it, so that ASHA decides as it did before.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from pitune.errors import one_line
from pitune.runtime.lane import N, error_of, name_of
from pitune.runtime.settings import RuntimeSettings
from pitune.runtime.tasks import SHARE, opened
from pitune.runtime.trials import METRIC, Point, commit_best, points, run_trial

FAILURES = 2  # deaths of a trial's actor that do not fail it
STOP_SECONDS = 30


@dataclass
class _Target(Generic[N]):
    """A node under way: its trials that wait, the one that runs, and the first error."""

    node: N
    job: Any  # the node's, a TuningJob
    waiting: list[Point]
    trials: int
    running: str | None = None
    error: str | None = None


@dataclass
class SearchLane(Generic[N]):
    """The lane of what is searched; see :class:`pitune.runtime.lane.Lane`. Its nodes' jobs are ``TuningJob``s.

    Args:
        materials: what the trials work with; picklable, with a ``store``.
        settings: what a trial takes of the cluster.
        storage: a local folder for Ray Tune's own files.
    """

    materials: Any
    settings: RuntimeSettings
    storage: str
    _targets: dict[str, _Target[N]] = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _thread: threading.Thread | None = field(init=False, default=None)
    _stopping: bool = field(init=False, default=False)

    def __enter__(self) -> Self:
        """Nothing is started before the first target."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the trials and wait for the thread: a call to Ray after its end would end the process."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def add(self, nodes: Sequence[N]) -> None:
        """Take targets: into the search that is under way, or into a new one."""
        with self._lock:
            for node in nodes:
                job: Any = node.job
                trials = points(job)
                self._targets[name_of(node)] = _Target(node, job, trials, len(trials))
        self._go_on()

    def finished(self) -> list[tuple[N, str | None]]:
        """Return the targets whose trials have all ended since the last call; commits the best trial of each."""
        with self._lock:
            over = [name for name, target in self._targets.items() if not target.waiting and not target.running]
            ended = [self._targets.pop(name) for name in over]
        found = []
        for target in ended:
            found.append((target.node, target.error or error_of(commit_best, self.materials.store, target.job)))
        self._go_on()
        return found

    def running(self) -> dict[str, float]:
        """Return the targets that have a trial under way, and the share of their trials that has ended."""
        with self._lock:
            return {
                name: 1 - (len(target.waiting) + 1) / target.trials
                for name, target in self._targets.items()
                if target.running
            }

    def unfinished(self) -> int:
        """Return how many targets have not ended."""
        return len(self._targets)

    # --- in the Tuner's thread ----------------------------------------------------------------------------------

    def next_trial(self, trial: str) -> Point | None:
        """Return what ``trial`` is to try, of the first target that has none under way; None: nothing for now."""
        with self._lock:
            for target in self._targets.values():
                if target.waiting and target.running is None and not self._stopping:
                    target.running = trial
                    return target.waiting.pop(0)
        return None

    def is_over(self) -> bool:
        """Say whether no trial is left to be run."""
        with self._lock:
            return self._stopping or not any(target.waiting for target in self._targets.values())

    def ended(self, trial: str, error: str | None) -> None:
        """Note that a trial has ended, and its error; after one, its target's other trials are tried all the same."""
        with self._lock:
            for target in self._targets.values():
                if target.running == trial:
                    target.running, target.error = None, target.error or error

    def is_stopping(self) -> bool:
        """Say whether the trials that run are to be stopped."""
        return self._stopping

    def _go_on(self) -> None:
        """Start a Tuner where targets wait and none is there."""
        if (self._thread is None or not self._thread.is_alive()) and not self.is_over():
            self._thread = threading.Thread(target=self._fit, name="search", daemon=True)
            self._thread.start()

    def _fit(self) -> None:
        """Search until nothing is left; what ends the search itself ends every target."""
        try:
            _tuner(self).fit()
        except Exception as error:
            with self._lock:
                for target in self._targets.values():
                    target.waiting, target.running, target.error = [], None, target.error or one_line(error)
        with self._lock:
            for target in self._targets.values():
                if target.running:  # Tune was stopped amid it
                    target.running, target.error = None, target.error or "the search was stopped"


def _tuner(lane: SearchLane[Any]) -> tune.Tuner:
    """Return the Tuner that runs the lane's trials."""
    cpus, gpus = lane.settings.cpus_per_worker, lane.settings.gpus_per_worker
    shared = [ray.put(lane.materials)]

    def run(config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(cpus)
        try:
            run_trial(opened(shared), config["point"], tune.report)
        except Exception as error:  # told as a result: it would come again, and a raised one costs the warm actor
            tune.report({METRIC: math.nan, "step": 0, "error": one_line(error)})

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose tables ignore verbose=0
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the study, not the search alone
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the trials' scores are in the store
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(len(lane._targets))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error is told in one line
    return tune.Tuner(
        tune.with_resources(run, {"cpu": SHARE * cpus, "gpu": SHARE * gpus}),
        tune_config=tune.TuneConfig(
            search_alg=OneByOne(lane), scheduler=PerTarget(), reuse_actors=True, num_samples=10**9
        ),
        run_config=tune.RunConfig(
            name=f"search-{time.time_ns()}",
            storage_path=lane.storage,
            verbose=0,
            stop=_Stop(lane),
            callbacks=[_Ended(lane)],
            failure_config=tune.FailureConfig(max_failures=FAILURES),
        ),
    )


class _Told:
    """A part of the Tuner that talks to the lane; Tune writes it into the experiment's folder, without the lane."""

    def __init__(self, lane: SearchLane[Any] | None) -> None:
        self.lane = lane

    def __reduce__(self) -> Any:
        return type(self), (None,)


class OneByOne(_Told, Searcher):
    """Hands out the trials of each target one after another, those of different targets side by side."""

    def __init__(self, lane: SearchLane[Any] | None) -> None:
        _Told.__init__(self, lane)
        Searcher.__init__(self, metric=METRIC, mode="min")  # type: ignore[no-untyped-call]

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial; None where there is none for now; ``FINISHED`` where none is left."""
        assert self.lane is not None
        point = self.lane.next_trial(trial_id)
        if point is not None:
            return {"point": point}
        return Searcher.FINISHED if self.lane.is_over() else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the lane hears of it, with the error, from :class:`_Ended`."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: what the trials wrote down is all that a search goes on from."""


class PerTarget(FIFOScheduler):
    """One ASHA for each target."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of_target: dict[str, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Hand a new trial to its target's ASHA."""
        job = trial.config["point"].job
        steps = job.recipe.steps
        if job.artifacts[0] not in self._of_target:
            self._of_target[job.artifacts[0]] = ASHAScheduler(
                time_attr="step",
                metric=METRIC,
                mode="min",
                max_t=steps,
                grace_period=min(job.sweep.validate_every, steps),
                reduction_factor=job.sweep.reduction_factor,
            )
        self._of_target[job.artifacts[0]].on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let the target's ASHA go on with the trial or stop it."""
        asha = self._of_target[trial.config["point"].job.artifacts[0]]
        return str(asha.on_trial_result(tune_controller, trial, result))


class _Ended(_Told, tune.Callback):
    """Tells the lane of every trial's end."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tell; what its function raised is in its last result."""
        if self.lane is not None:
            self.lane.ended(trial.trial_id, (trial.last_result or {}).get("error"))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tell that its actor has died too often."""
        if self.lane is not None:
            error = trial.get_pickled_error()  # type: ignore[no-untyped-call]
            self.lane.ended(trial.trial_id, one_line(error) if error else "its trial failed")


class _Stop(_Told, tune.Stopper):
    """Stops all trials where the lane ends before they do."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped for its result: that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Say whether the lane ends."""
        return self.lane is not None and self.lane.is_stopping()
