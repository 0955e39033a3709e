"""What a study has recorded, as Ray Tune's trials: its sweeps as Ray's results, its curves for Ray's loggers.

All is read from the artifacts: Ray's own folder goes when a search is done, and packs are no trials of Ray's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.air.constants import TRAINING_ITERATION
from ray.tune import ExperimentAnalysis, ResultGrid
from ray.tune.experiment import Trial

from pitune.errors import PituneError
from pitune.runtime.trials import METRIC
from pitune.store import Manifest, Store

SWEEPS, CURVE = "sweeps/", "curve.parquet"
SETTINGS = ("top_k", "temperature", "own", "rate")


def tune_results(study: str | Path) -> ResultGrid:
    """Return all trials of a study's finished sweeps as Ray Tune gives them; no Ray is started.

    A trial's ``config`` has its ``sweep`` (``nyt@16#0``, of another method than pi ``nyt@16#0/fusion``), ``trial``,
    ``top_k``, ``temperature``, ``own`` and ``rate``. A row of its ``metrics_dataframe`` is a validated step: ``step``,
    ``validation`` (the loss by which trials are compared), ``accuracy``, ``seconds``, ``state`` and ``chosen``. Trials
    have no checkpoints: the chosen one is ``interpolations/<slice>``.

    Args:
        study: its folder or URI.

    Raises:
        PituneError: it has no finished sweep, or one cannot be read.
    """
    store = Store(study)
    trials = [trial for artifact in store.catalogue() for trial in _trials(store, artifact, ".")]
    if not trials:
        raise PituneError(f"study {store.root}: has no finished sweep; run a study that has one")
    return ResultGrid(_Recorded(store, trials))


def replay(study: str | Path, callback: tune.Callback, folder: str | Path = ".") -> int:
    """Give a callback of Ray Tune's, such as a logger, all that a study has recorded; return how many trials that were.

    Every expert that was trained is a trial, with its recipe as ``config`` and its curve as results (``step``,
    ``loss``, and ``validation`` where it was measured), and so is every trial of a finished sweep, as in
    :func:`tune_results`. The step is what Ray calls ``training_iteration``.

    Args:
        study: its folder or URI; it may be under way.
        callback: ``TBXLoggerCallback()``, ``MLflowLoggerCallback(tracking_uri=…, experiment_name=…)``, …
        folder: where callbacks that write files, as TensorBoard's, put a folder for each trial.

    Raises:
        PituneError: an artifact cannot be read.
    """
    store, trials = Store(study), []
    callback.setup()
    for artifact, manifest in store.catalogue().items():
        for trial in (*_expert(store, artifact, manifest, folder), *_trials(store, artifact, folder)):
            trials.append(trial)
            callback.on_trial_start(len(trials), [trial], trial)
            for result in trial.results:
                callback.on_trial_result(len(trials), [trial], trial, dict(result))
            callback.on_trial_complete(len(trials), [trial], trial)
    callback.on_experiment_end(list(trials))
    return len(trials)


class _Recorded(ExperimentAnalysis):
    """An analysis of trials whose results are at hand; Ray's own looks for them in files."""

    def __init__(self, store: Store, trials: list[_Tried]) -> None:
        self.default_metric, self.default_mode = METRIC, "min"
        self._fs: Any = None  # nothing is read through it
        self._experiment_fs_path = store.where(SWEEPS)
        self.trials = list(trials)
        self._trial_dataframes = {trial.trial_id: pd.DataFrame(trial.results) for trial in trials}
        self._configs = self.get_all_configs()


class _Tried(Trial):
    """A trial that has been.

    Args:
        name: names it, and its folder.
        config: its settings.
        rows: what is recorded of it, a row for each step; what is no number is left out.
        path: where that lies in the study.
        folder: of the trials' own folders.
    """

    def __init__(
        self, name: str, config: dict[str, Any], rows: list[dict[str, Any]], path: str, folder: str | Path
    ) -> None:
        super().__init__("pitune", config=config, evaluated_params=config, trial_id=name, stub=True)
        self._path, self._folder = path, Path(folder, name)
        numbers = [{key: value for key, value in row.items() if not _is_nan(value)} for row in rows]
        self.results = [{**row, TRAINING_ITERATION: row["step"]} for row in numbers]
        self.set_status(Trial.TERMINATED)  # type: ignore[no-untyped-call]
        for result in self.results:
            self.update_last_result({**result, "config": config})  # type: ignore[no-untyped-call]

    @property
    def path(self) -> str:
        """Where its results lie."""
        return self._path

    @property
    def local_path(self) -> str:
        """The folder for a logger's files."""
        return str(self._folder)

    def init_local_path(self) -> None:
        """Make that folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return str(self.trial_id)


def _trials(store: Store, artifact: str, folder: str | Path) -> Iterator[_Tried]:
    """Yield the trials of an artifact that is a sweep."""
    if artifact.startswith(SWEEPS) and artifact.endswith(".parquet"):
        sweep = artifact.removeprefix(SWEEPS).removesuffix(".parquet")
        for name, found in groupby(store.table(artifact).to_pylist(), key=lambda row: row["trial"]):
            rows = list(found)
            config = {"sweep": sweep, "trial": name, **{setting: rows[0][setting] for setting in SETTINGS}}
            yield _Tried(f"{SWEEPS}{sweep}/{name}", config, rows, store.where(artifact), folder)


def _expert(store: Store, artifact: str, manifest: Manifest, folder: str | Path) -> Iterator[_Tried]:
    """Yield the one trial of an artifact that is an expert which was trained.

    It is no copy of the best of several, and no mixture: mixtures have curves, too, which are their sweeps' trials'.
    """
    if CURVE in manifest["files"] and "recipe" in manifest and "chosen" not in manifest:
        config = {"expert": artifact, "start": manifest["start"], **manifest["recipe"]}
        yield _Tried(artifact, config, store.table(artifact, CURVE).to_pylist(), store.where(artifact), folder)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
