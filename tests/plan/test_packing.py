"""Packs that fit into a worker's memory, and what a plan says of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tinystudy import make_study

from pitune.config import load_config
from pitune.plan import Plan
from pitune.plan.packing import packer, to_train, told
from pitune.training.pack import PACK_SIZE

PLENTY = 1 << 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packing")
    make_study(folder, targets={"tasks": ["alpha", "beta"], "shots": [2], "seeds": [0, 1, 2, 3]})
    return folder


def planned(folder: Path, *overrides: str) -> Plan:
    return Plan.of(load_config(folder / "study.yaml", list(overrides)))


def test_packs_are_as_large_as_fits(folder: Path) -> None:
    plan = planned(folder)
    jobs = to_train(plan)
    room = plan.memory.of(jobs[:1] * 3) + 1
    for packs, most in ((packer(plan, PLENTY)(jobs), PACK_SIZE), (packer(plan, None)(jobs), PACK_SIZE)):
        assert max(len(pack.jobs) for pack in packs) == most
    bounded = packer(plan, room)(jobs)
    assert {job.artifacts for pack in bounded for job in pack.jobs} == {job.artifacts for job in jobs}
    assert all(len(pack.jobs) == 1 or plan.memory.of(pack.jobs) <= room for pack in bounded)
    assert 1 < max(len(pack.jobs) for pack in bounded) < PACK_SIZE
    assert all(len(pack.jobs) == 1 for pack in packer(plan, 0)(jobs))  # what does not fit is tried


def test_the_plan_tells_the_largest_pack(folder: Path) -> None:
    plan = planned(folder)
    (line,) = told(plan, PLENTY)
    assert re.fullmatch(
        r"largest pack: \d experts? x \d rows, about \d\.\d GiB a worker, of the 1024.0 GiB that it has here", line
    )
    assert told(plan, None)[0].endswith("this machine has no GPU to compare with")


def test_a_size_that_does_not_fit_is_kept_and_the_setting_named(folder: Path) -> None:
    plan = planned(folder, "training.pack_size=8")
    assert max(len(pack.jobs) for pack in packer(plan, 0)(to_train(plan))) == 8
    assert told(plan, PLENTY)[1:] == []
    assert told(plan, 0)[1:] == [
        "warning: that is more than there is; training.pack_size: 8 found; lower it, or leave it out"
    ]
    assert "; lower training.*.batch_size, or raise" in told(planned(folder, "training.pack_size=1"), 0)[1]


def test_where_nothing_is_to_be_trained_nothing_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(folder)
    monkeypatch.setattr(Plan, "missing", lambda self: iter(()))
    assert told(plan, PLENTY) == []
    assert "backbone" not in vars(plan.materials)  # nor opened


def test_workers_and_accumulation_share_out_the_rows(folder: Path) -> None:
    alone, shared = planned(folder), planned(folder, "runtime.workers=2", "training.gradient_accumulation=2")
    job = to_train(alone)[0]
    assert (alone.memory.rows(job), shared.memory.rows(job)) == (8, 2)
    assert shared.memory.of([job]) <= alone.memory.of([job])
