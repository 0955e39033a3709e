"""Gangs come and go with the cluster's machines; what is lost with a machine counts against nobody.

pytest tests/faults -m faults
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
from battered import WORKER, Nodes, actors
from ray.autoscaler.v2.sdk import get_cluster_status
from toygangs import Pack, storage, work

from pitune.runtime.gangs import run_packs
from pitune.runtime.queue import TRIES
from pitune.runtime.settings import SHARE, RuntimeSettings
from pitune.runtime.snapshot import Snapshot

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.ray, pytest.mark.kill]


def test_a_node_comes_and_a_gang_with_it(nodes: Nodes, tmp_path: Path) -> None:
    gone = nodes.with_any()
    nodes.remove(gone)
    while any(one["Alive"] for one in ray.nodes() if one["NodeID"] == gone):
        time.sleep(0.1)
    seen: set[str] = set()

    def look(snapshot: Snapshot) -> None:
        if snapshot.running:
            nodes.fill()
        seen.update(str(actor["Address"]["NodeID"]) for actor in actors(WORKER))

    packs = [Pack(f"p{index}", sleep=5.0, trains=False) for index in range(12)]
    assert run_packs(packs, work(tmp_path), RuntimeSettings(), storage(tmp_path), look) == {}
    assert len(seen) == 2


def test_a_pack_outlives_more_machines_than_it_has_tries(nodes: Nodes, tmp_path: Path) -> None:
    """Each time that its gang works on it, the gang's node is removed and another one comes."""
    removed: list[str] = []
    made = work(tmp_path)

    def take(snapshot: Snapshot) -> None:
        begun = len(made.notes("begun"))
        if begun > len(removed) <= TRIES:
            removed.append(nodes.with_any(WORKER))
            nodes.remove(removed[-1])
            nodes.fill()

    pack = Pack("long", sleep=8.0)
    assert run_packs([pack], made, RuntimeSettings(gangs=1), storage(tmp_path), take) == {}
    assert len(removed) == TRIES + 1 and made.result("long")["first"] == 0


def test_gangs_without_room_are_what_an_autoscaler_sees(nodes: Nodes, tmp_path: Path) -> None:
    seen: list[Any] = []
    deadline = time.monotonic() + 360

    def look(snapshot: Snapshot) -> None:
        if len(snapshot.running) == 2:
            demand = get_cluster_status(nodes.address).resource_demands.placement_group_demand
            seen.extend(bundle for one in demand for bundle in one.bundles_by_count)
        if seen or time.monotonic() > deadline:
            raise InterruptedError

    packs = [Pack(f"p{index}", sleep=600.0) for index in range(3)]
    with pytest.raises(InterruptedError):
        run_packs(packs, work(tmp_path), RuntimeSettings(gangs=3), storage(tmp_path), look)
    assert [(one.count, one.bundle["CPU"]) for one in seen] == [(1, SHARE)]
