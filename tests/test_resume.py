"""Signals in stage after stage of a study; what goes on from there is what would have come of it anyway.

Stages go on side by side: a kill in one may also be one in the middle of others.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinystudy import make_study

from pitune.config import load_config
from pitune.methods.transfer import wrong_pairs
from pitune.results import TRANSFER
from pitune.store import Store

STAGES = {
    "transfer": "transfer/*/*",
    "interpolations": "interpolations/*",
    "predictions": "predictions/*/*",
}
"""Where the artifacts of a stage of each lane lie: gangs, trials, tasks."""
FIRST = {"interpolations": "sweeps/trials/*"}
"""Where a stage's first files appear, where that is elsewhere."""


def files(study: Path, place: str) -> set[Path]:
    return {path for found in study.glob(place) for path in (found, *found.rglob("*")) if path.is_file()}


def wait_for_a_file(study: Path, place: str, before: set[Path]) -> None:
    """Return as soon as there is a file in ``place``, if only a partial one, that was not there before."""
    deadline = time.monotonic() + 120
    while files(study, place) <= before and time.monotonic() < deadline:
        time.sleep(0.002)


def leave_something(study: Path, stage: str) -> None:
    """Discard a stage's artifacts, if there are any: the one before may have been killed when this one was through."""
    store = Store(study)
    for artifact in list(store.artifacts()):
        if fnmatch(artifact, STAGES[stage]):
            store.discard(artifact)


def run(config: Path, study: Path, kill_in: str | None = None, number: int = signal.SIGKILL) -> list[str]:
    """Run the study; with ``kill_in``, send the driver a signal when that stage writes its first file.

    Returns:
        The lines that it printed.
    """
    words = [sys.executable, "-m", "pitune.cli", "run", str(config), "--set", f"study={study}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    lines = []
    place = FIRST.get(kill_in, STAGES[kill_in]) if kill_in else ""
    before = files(study, place) if kill_in else set()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if kill_in and re.match(rf"{kill_in}: \d+ of \d+ there, starting", line):
                wait_for_a_file(study, place, before)
                os.kill(process.pid, number)
    killed = 143 if number == signal.SIGTERM else -number
    assert process.returncode == (killed if kill_in else 0), "".join(lines)
    return lines


def assert_close(ours: Path, theirs: Path) -> None:
    """To rounding: how a matrix lies in memory may change a product's last bit."""
    mine, other = (load_file(expert / "adapter_model.safetensors") for expert in (ours, theirs))
    for key in mine:
        torch.testing.assert_close(mine[key], other[key], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.kill
def test_stopped_or_killed_in_any_lane_it_goes_on_to_identical_results(tmp_path: Path) -> None:
    config = make_study(tmp_path, transfer={})
    run(config, tmp_path / "through")
    lines = run(config, tmp_path / "killed", kill_in="transfer", number=signal.SIGTERM)
    assert lines[-1] == "pitune: stopped; run the same command to go on\n"
    assert not any("Traceback" in line for line in lines)
    assert not list(Store(tmp_path / "killed").problems())
    for stage in ("interpolations", "predictions"):
        leave_something(tmp_path / "killed", stage)
        run(config, tmp_path / "killed", kill_in=stage)
        killed = Store(tmp_path / "killed")
        assert not list(killed.problems())
        kept = {name: manifest["written"] for name, manifest in killed.artifacts().items()}
    assert "results.parquet" not in kept
    run(config, tmp_path / "killed")

    ours: Any
    theirs: Any
    through, made = Store(tmp_path / "through"), killed.artifacts()
    assert {name: made[name]["written"] for name in kept} == kept  # what was there was not made again
    assert through.artifacts().keys() == made.keys() and not wrong_pairs(killed)
    ours, theirs = (store.table("results.parquet").drop_columns("seconds") for store in (through, killed))
    assert ours.equals(theirs)
    assert through.table(TRANSFER).equals(killed.table(TRANSFER))
    for prediction in set(ours["prediction"].to_pylist()):
        ours, theirs = (store.table(prediction) for store in (through, killed))
        for column in ("key", "label", "prediction"):
            assert ours[column].equals(theirs[column]), (prediction, column)
        assert ours["score"].to_pylist() == pytest.approx(theirs["score"].to_pylist(), abs=1e-5)
    targets = load_config(config).targets
    pairs = [artifact for artifact in made if artifact.startswith("transfer/")]
    assert len(pairs) > len(targets)
    for artifact in (*pairs, *(f"{place}/{target}" for place in ("experts", "interpolations") for target in targets)):
        assert_close(tmp_path / "through" / artifact, tmp_path / "killed" / artifact)
    ours, theirs = (store.table("graph.parquet").to_pylist() for store in (through, killed))
    assert [edge.pop("similarity") for edge in ours] == pytest.approx(
        [edge.pop("similarity") for edge in theirs], abs=1e-6
    )
    assert ours == theirs
