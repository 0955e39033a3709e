"""A study's sweeps opened as Ray Tune's results, against the tables that they are made from."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune import ResultGrid
from ray.tune.logger import TBXLoggerCallback
from tensorboardX.proto import event_pb2

import pitune
from pitune.errors import PituneError
from pitune.store import Store, table_bytes

LOSSES = {"k1-t0.5-fresh-r1.0": [0.9, 0.5], "k2-t0.5-fresh-r1.0": [1.2], "k3-t0.5-fresh-r1.0": [0.8, 0.3]}


def rows(losses: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A sweep's table: validations every two steps, of four."""
    return [
        {
            **{
                "trial": name,
                "top_k": int(name[1]),
                "temperature": 0.5,
                "own": "fresh",
                "rate": 1.0,
                "step": 2 * count,
            },
            **{"step": 2 * count, "validation": loss, "accuracy": 1 - loss / 2, "seconds": 0.1 * count},
            **{"state": "finished" if len(found) == 2 else "stopped", "chosen": loss == 0.3},
        }
        for name, found in losses.items()
        for count, loss in enumerate(found, 1)
    ]


@pytest.fixture
def study(tmp_path: Path) -> Store:
    store = Store(tmp_path / "study")
    store.commit("sweeps/a@2#0.parquet", {"": table_bytes(rows(LOSSES))}, "mark")
    less = {name: [loss / 2 for loss in found] for name, found in LOSSES.items()}
    store.commit("sweeps/a@2#0/fusion.parquet", {"": table_bytes(rows(less))}, "mark")
    store.commit("sweeps/trials/b@2#0-pi/k1-t0.5-fresh-r1.0.json", {"": b"[]"}, "mark")  # is not finished
    return store


def test_the_trials_are_those_of_the_tables(study: Store) -> None:
    before = ray.is_initialized()
    found = pitune.tune_results(study.root)
    assert isinstance(found, ResultGrid) and len(found) == 6 and not found.errors
    assert ray.is_initialized() == before  # it starts none
    own = [result for result in found if result.config and result.config["sweep"] == "a@2#0"]
    assert {result.config["trial"]: result.metrics_dataframe["validation"].tolist() for result in own} == LOSSES  # type: ignore
    best = found.get_best_result()
    assert best.config == {
        **{"sweep": "a@2#0/fusion", "trial": "k3-t0.5-fresh-r1.0", "top_k": 3},
        **{"temperature": 0.5, "own": "fresh", "rate": 1.0},
    }
    assert best.metrics is not None and (best.metrics["validation"], best.metrics["step"]) == (0.15, 4)
    assert best.path == study.where("sweeps/a@2#0/fusion.parquet")
    assert found.get_best_result("accuracy", "min").config["top_k"] == 2  # type: ignore[index]
    table = found.get_dataframe()
    assert sorted(table["validation"]) == [0.15, 0.25, 0.3, 0.5, 0.6, 1.2]
    assert set(table["config/top_k"]) == {1, 2, 3}


class Told(tune.Callback):
    """Remembers what it is told: of each trial its config and results."""

    def __init__(self) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.ended: list[str] = []

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.configs[str(trial)], self.results[str(trial)] = trial.config, []

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self.results[str(trial)].append(result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended.append(str(trial))


@pytest.fixture
def trained(study: Store) -> Store:
    """The same study with an expert, a copy of it as the best of several, and a mixture."""
    curve = [{"step": 1, "loss": 0.9, "validation": math.nan}, {"step": 2, "loss": 0.7, "validation": 0.8}]
    recipe = {"steps": 2, "learning_rate": 0.01}
    facts: dict[str, Any] = {"start": "common", "recipe": recipe}
    study.commit("experts/a@2#0", {"curve.parquet": table_bytes(curve)}, "mark", **facts)
    study.commit(
        "baselines/a@2#0/single", {"curve.parquet": table_bytes(curve)}, "mark", **facts, chosen="experts/a@2#0"
    )
    study.commit("interpolations/a@2#0", {"curve.parquet": table_bytes(curve)}, "mark", members=["experts/a@2#0"])
    return study


def test_a_callback_is_given_every_curve_and_every_trial(trained: Store) -> None:
    told = Told()
    assert pitune.replay(trained.root, told) == 7
    assert told.configs["experts/a@2#0"] == {
        **{"expert": "experts/a@2#0", "start": "common"},
        **{"steps": 2, "learning_rate": 0.01},
    }
    assert told.results["experts/a@2#0"] == [
        {"step": 1, "loss": 0.9, "training_iteration": 1},
        {"step": 2, "loss": 0.7, "validation": 0.8, "training_iteration": 2},
    ]
    assert [row["validation"] for row in told.results["sweeps/a@2#0/k3-t0.5-fresh-r1.0"]] == [0.8, 0.3]
    assert told.ended == list(told.results) and len(told.results) == 7


def test_tensorboard_gets_a_folder_for_each(trained: Store, tmp_path: Path) -> None:
    pitune.replay(trained.root, TBXLoggerCallback(), tmp_path / "board")
    (file,) = (tmp_path / "board/experts/a@2#0").glob("events.out.tfevents.*")
    found = [(event.step, value.tag, value.simple_value) for event in events(file) for value in event.summary.value]
    losses = [(step, pytest.approx(value)) for step, tag, value in found if tag == "ray/tune/loss"]
    assert losses == [(1, 0.9), (2, 0.7)]
    assert [step for step, tag, _ in found if tag == "ray/tune/validation"] == [2]
    assert len(list((tmp_path / "board").rglob("events.out.*"))) == 7


def events(file: Path) -> Iterator[Any]:
    """Yield what a file of TensorBoard's holds: records of a length (8 bytes), its sum (4), the record, its sum (4)."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]


def test_mlflow_gets_a_run_for_each(trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path}/mlruns"
    pitune.replay(trained.root, MLflowLoggerCallback(tracking_uri=uri, experiment_name="study"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    run = by_name["experts/a@2#0"]
    assert len(by_name) == 7 and run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.01" and run.data.params["start"] == "common"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.9), (2, 0.7)]


def test_a_study_without_a_sweep_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(PituneError, match="has no finished sweep; run a study"):
        pitune.tune_results(tmp_path)
