"""The log of a pack: what its lines say, and how often there is one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tinystudy import make_study

from pitune.config import load_config
from pitune.errors import PituneError
from pitune.plan import Plan
from pitune.store import Store
from pitune.training import log
from pitune.training.log import SECONDS, PackLog
from pitune.training.loop import Alone
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.work import ExpertTraining


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its only entry is changed."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def lines(store: Store, pack: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.text(f"logs/{pack}.jsonl").splitlines()]


def test_the_first_step_the_last_one_and_one_now_and_then_have_a_line(tmp_path: Path, clock: list[float]) -> None:
    store, asked = Store(tmp_path / "study"), []
    made = PackLog(store, "pack-1", ["experts/a@2#0", "experts/b@2#0"])
    for step in range(1, 31):
        clock[0] += 1

        def losses(step: int = step) -> list[float]:
            asked.append(step)
            return [1 / step, math.nan]

        made.step(step, 30, 8, losses)
    found = lines(store, "pack-1")
    assert [line["step"] for line in found] == asked == [1, 11, 21, 30]  # the GPU is waited for no more often
    assert [line["rows_per_second"] for line in found] == [None, 8.0, 8.0, 8.0]
    assert found[1]["losses"] == {"experts/a@2#0": 0.090909, "experts/b@2#0": None}
    assert {(line["study"], line["pack"], line["steps"]) for line in found} == {("study", "pack-1", 30)}
    PackLog(store, "pack-1", ["experts/a@2#0"]).step(15, 30, 8, lambda: [0.5])  # the pack goes on elsewhere
    assert [line["step"] for line in lines(store, "pack-1")] == [1, 11, 21, 30, 15]
    assert SECONDS == 10


def test_an_object_store_gets_a_line_a_minute(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "study")
    monkeypatch.setattr(store, "is_local", False)
    made = PackLog(store, "pack-1", ["experts/a@2#0"])
    for step in range(1, 151):
        clock[0] += 1
        made.step(step, 150, 8, lambda: [0.5])
    assert [line["step"] for line in lines(store, "pack-1")] == [1, 61, 121, 150]


def test_a_log_that_cannot_be_written_fails_no_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, data: bytes) -> None:
        raise PituneError("the disk is full")

    store = Store(tmp_path)
    monkeypatch.setattr(store, "append", refuse)
    PackLog(store, "pack-1", ["experts/a@2#0"]).step(1, 1, 8, lambda: [0.5])


def test_a_pack_of_a_study_has_a_log(tmp_path: Path) -> None:
    plan = Plan.of(load_config(make_study(tmp_path)))
    jobs = [node.job for node in plan.nodes.values() if isinstance(node.job, ExpertJob)]
    (pack,) = make_packs([job for job in jobs if job.data[0][0].shots and job.start is None], plan.config.training)
    ExpertTraining(plan.materials, plan.config.training).train(pack, Alone())
    last = lines(plan.store, pack.name)[-1]
    assert (last["step"], last["steps"]) == (4, 4)
    for artifact, loss in last["losses"].items():
        curve = plan.store.table(artifact, "curve.parquet").to_pylist()
        assert loss == pytest.approx(curve[-1]["loss"], abs=1e-6)
    assert last["losses"].keys() == {"experts/alpha@2#0", "experts/beta@2#1"}
