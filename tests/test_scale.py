"""The benchmarks of scale at tiny sizes: gangs in virtual time against list scheduling, and what is said of it."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

import pitune

BENCHMARKS = Path(pitune.__file__).parents[1] / "benchmarks"


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("scale")
    monkeypatch.setattr(module, "PROGRESS", 5.0)
    return module


def test_gangs_that_only_train_are_as_good_as_list_scheduling(
    scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cost in ("START", "LOSSES", "CALL", "ROUND_TRIP"):
        monkeypatch.setattr(scale, cost, 0.0)
    found = scale.measure(tmp_path, 30, 3, 2)
    assert 15 <= found.packs < 30 and found.losses == 0
    assert found.ideal * 0.98 < found.efficiency <= found.ideal <= 1


def test_gangs_die_and_everything_is_made(scale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LOSSES", 0.3)
    found = scale.measure(tmp_path, 30, 3, 1)  # which raises where an expert is not there
    assert found.packs == 30 and found.losses > 3
    assert found.efficiency < found.ideal
    assert found.commit > 0 and found.claim > 0


def test_list_scheduling_by_hand(scale: Any) -> None:
    assert scale.list_scheduled([3, 2, 2], 1) == 7
    assert scale.list_scheduled([3, 2, 2], 2) == 4
    assert scale.list_scheduled([3, 2, 2], 5) == 3


def test_a_bound_is_a_share_of_list_scheduling_where_packs_are_few(scale: Any) -> None:
    fields = {field.name: 0.0 for field in dataclasses.fields(scale.Figures)}
    many = scale.Figures(**fields | {"packs": 6400, "efficiency": 0.93, "ideal": 0.96})
    few = dataclasses.replace(many, packs=640)
    assert scale.missed({(6400, 64, 1): many}) == ["6400 slices on 64 gangs: efficiency 0.930, 0.950 is right"]
    assert scale.missed({(640, 64, 1): few, (6400, 8, 1): many}) == []


def test_embeddings_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("nearest")
    monkeypatch.setattr(module, "PARAMETERS", 256)
    monkeypatch.setattr(module, "SAMPLE", 50)
    found = module.measure(1_000, [256, 64])
    assert all(one.recall > 0.99 and one.cosine <= one.best for one in found.values())
    assert found[64].full < found[256].full
