"""A study on a cluster of three nodes comes to the same whatever is killed amid it, whenever.

    pytest tests/faults -m faults

What each blow cost is printed at the end; docs/faults.md has such a table.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from battered import CONTROLLER, QUEUE, WORKER, Blow, Made, Nodes, actors, begun_again, kill, make
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pitune.runtime import gangs

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.ray, pytest.mark.kill]
Tell = Callable[[str, Blow, Made], None]


def test_a_worker_is_killed(nodes: Nodes, config: Path, tmp_path: Path, told: Tell) -> None:
    blow = Blow("experts", lambda: kill(actors(WORKER)[:1]), made=0.1)
    told("a worker", blow, make(config, str(tmp_path / "study"), blow))


def test_every_gang_is_killed_with_its_controller(nodes: Nodes, config: Path, tmp_path: Path, told: Tell) -> None:
    blow = Blow("experts", lambda: kill(actors(CONTROLLER, WORKER)), made=0.1)
    told("all gangs", blow, make(config, str(tmp_path / "study"), blow))


@pytest.mark.parametrize(
    ("stage", "made"),
    [("experts", 0.1), ("embeddings", 0.0), ("interpolations", 0.0), ("transfer", 0.1), ("predictions", 0.0)],
)
def test_a_node_is_removed(
    nodes: Nodes, config: Path, tmp_path: Path, told: Tell, reference: Made, stage: str, made: float
) -> None:
    """The one that a gang is on, where there is one: tasks and trials are on both."""
    blow = Blow(stage, lambda: nodes.remove(nodes.with_any(WORKER)), made)
    told("a node", blow, make(config, str(tmp_path / "study"), blow))


def test_the_queues_node_is_removed(
    nodes: Nodes, config: Path, tmp_path: Path, told: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is beside the driver by itself; here it is put elsewhere, for it is to be lost without the driver."""
    away: Any = NodeAffinitySchedulingStrategy(nodes.with_any(), soft=True)
    monkeypatch.setattr(gangs, "NodeAffinitySchedulingStrategy", lambda node, soft: away)

    def strike() -> None:
        (node,) = {str(actor["Address"]["NodeID"]) for actor in actors(QUEUE)}
        nodes.remove(node)

    blow = Blow("experts", strike, made=0.1)
    told("the queue's node", blow, make(config, str(tmp_path / "study"), blow))


def test_the_driver_is_killed_and_restarted(nodes: Nodes, config: Path, tmp_path: Path, told: Tell) -> None:
    study = tmp_path / "study"
    words = [sys.executable, "-m", "pitune.cli", "run", str(config), "--set", f"study={study}"]
    began = time.monotonic()
    with subprocess.Popen([*words, "--address", nodes.address], stdout=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not list(study.glob("experts/*/manifest.json")):
            time.sleep(0.05)
        assert driver.poll() is None
        os.kill(driver.pid, signal.SIGKILL)
    blow = Blow("experts", lambda: None)  # notes what is left
    made = make(config, str(study), blow)
    made.seconds, made.again = time.monotonic() - began, begun_again(made.store)
    told("the driver", blow, made)
