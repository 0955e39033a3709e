"""Metrics: what is counted where, under which name Ray gives it away, and that the board asks for nothing else."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from prometheus_client import REGISTRY, generate_latest
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
from ray.util.metrics import Counter, Metric
from toygangs import EXPERTS, ROWS, STEPS, Pack, settings, storage, work

from pitune.runtime import metrics
from pitune.runtime.gangs import run_packs
from pitune.runtime.queue import Queue
from pitune.runtime.worker import Between, GangSeat
from pitune.store import Store

BOARD = Path(__file__).parents[2] / "cluster/grafana.json"
OURS = {found.info["name"]: found for found in vars(metrics).values() if isinstance(found, Metric)}
Seen = list[tuple[str, float, dict[str, str] | None]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What is recorded: each metric's name, the value and its tags."""
    found: Seen = []

    def record(metric: Metric, value: float, tags: dict[str, str] | None = None) -> None:
        found.append((metric.info["name"], value, tags))

    monkeypatch.setattr(Metric, "_record", record)
    return found


def test_the_queue_counts_its_packs_and_their_ends(seen: Seen) -> None:
    packs = Queue[Pack](tries=2)
    packs.add([Pack(f"p{index}") for index in range(3)])
    packs.claim("a")
    packs.claim("b")
    packs.snapshot()
    assert seen == [("pitune_packs", 1, {"state": "waiting"}), ("pitune_packs", 2, {"state": "running"})]
    seen.clear()
    packs.done("p0")
    packs.done("p0")  # told again, after a queue that had to start again
    packs.failed("p0", "late")
    assert seen == [("pitune_packs_finished", 1, {"how": "done"})]
    seen.clear()
    packs.lost("b")
    assert seen == [("pitune_pack_retries", 1, None)]
    packs.claim("b")
    packs.lost("b")
    assert seen[1:] == [("pitune_packs_finished", 1, {"how": "failed"})]
    seen.clear()
    packs.preempted("b")
    assert seen == [("pitune_preemptions", 1, None)]


def test_every_worker_counts_its_own_rows(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []
    queue = SimpleNamespace(progress=SimpleNamespace(remote=lambda *facts: told.append(facts)))
    for rank in (0, 1):
        context = SimpleNamespace(get_world_rank=lambda rank=rank: rank, get_world_size=lambda: 2)
        monkeypatch.setattr("pitune.runtime.worker.ray.train.get_context", lambda context=context: context)
        seat = GangSeat(queue, "a", b"", Between.__new__(Between))
        seat.take("p0")
        for step in range(1, 4):
            seat.progress(step, 100, 8)
    assert seen == [("pitune_rows_trained", 8, None)] * 6
    assert told == [("a", "p0", 1, 100)]  # the queue is told at most twice a second, and by one of them


def test_commits_are_counted_with_their_manifests(seen: Seen, tmp_path: Path) -> None:
    store = Store(tmp_path)
    metrics.count_commits()
    metrics.count_commits()
    store.commit("experts/a", {"one.bin": b"12345", "two.bin": b"123"}, "mark")
    size = sum(path.stat().st_size for path in (tmp_path / "experts/a").iterdir())
    assert seen == [("pitune_committed_bytes", size, None)]
    store.write("study.yaml", b"no artifact")
    assert len(seen) == 1


@pytest.fixture(scope="module")
def exported() -> dict[str, Metric]:
    """Our metrics by the names under which Ray's agent gives them to Prometheus."""
    agent = OpenTelemetryMetricRecorder()
    for name, metric in OURS.items():
        register = agent.register_counter_metric if isinstance(metric, Counter) else agent.register_gauge_metric
        register(name, metric.info["description"])
        agent.set_metric_value(name, dict.fromkeys(metric.info["tag_keys"], "x"), 1)
    given = set(re.findall(r"^(ray_pitune_\w+)\{", generate_latest(REGISTRY).decode(), re.MULTILINE))
    assert len(given) == len(OURS)
    return {full: OURS[full.removeprefix("ray_").removesuffix("_total")] for full in given}


def test_the_board_shows_every_metric_and_no_other(exported: dict[str, Metric]) -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    asked = set()
    for expression in (target["expr"] for panel in panels for target in panel["targets"]):
        (name,) = re.findall(r"\bray_\w+", expression)
        asked.add(name)
        assert ("rate(" in expression or "increase(" in expression) is isinstance(exported[name], Counter), expression
        assert set(re.findall(r"by \((\w+)\)", expression)) <= {*exported[name].info["tag_keys"], "instance"}, (
            expression
        )
    assert asked == exported.keys()
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.slow
def test_rays_endpoint_has_what_gangs_have_done(ray_session: None, tmp_path: Path) -> None:
    """Ray tells of all that its session has counted: what other tests' gangs did is taken off."""
    rows, finished = "ray_pitune_rows_trained_total", "ray_pitune_packs_finished_total"
    before = scraped()
    packs = [Pack("bad", error="clear"), *(Pack(f"metric{index}") for index in range(3))]
    run_packs(packs, work(tmp_path), settings(), storage(tmp_path))

    def counted(name: str) -> float:
        return scraped().get(name, 0.0) - before.get(name, 0.0)

    deadline = time.monotonic() + 60
    while (counted(rows) < 3 * STEPS * EXPERTS * ROWS or counted(finished) < 4) and time.monotonic() < deadline:
        time.sleep(1)
    assert counted(rows) >= 3 * STEPS * EXPERTS * ROWS
    assert counted(finished) >= 4


def scraped() -> dict[str, float]:
    """Return what Ray's endpoint says, by metric."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return values(answer.read().decode())


def values(text: str) -> dict[str, Any]:
    """Return the sum of each metric in Prometheus' text format."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found
