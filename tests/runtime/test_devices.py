"""What a gang's worker has of this machine's memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pitune.runtime import devices
from pitune.runtime.settings import RuntimeSettings


def test_a_worker_has_a_share_of_the_memory_by_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "machine_memory", lambda: 100_000)
    monkeypatch.setattr(devices, "cores", lambda: 4)
    assert devices.worker_memory(RuntimeSettings(cpus_per_worker=1)) == 15_000
    assert devices.worker_memory(RuntimeSettings(cpus_per_worker=4)) == 60_000
    assert devices.worker_memory(RuntimeSettings(cpus_per_worker=8)) == 60_000  # no machine has more than it has
    assert devices.worker_memory(RuntimeSettings(cpus_per_worker=1, gangs=1, workers=2)) == 30_000  # no more take part


@pytest.mark.parametrize(("limit", "found"), [("max", None), ("1048576", 1 << 20), (None, None), (str(1 << 60), None)])
def test_a_container_has_what_it_is_given(
    limit: str | None, found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LIMIT", tmp_path / "memory.max")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert devices.machine_memory() == (found or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


@pytest.mark.parametrize(
    ("said", "found"), [("81559\n40960\n", 40960 << 20), ("", None), ("NVIDIA-SMI has failed\n", None)]
)
def test_a_worker_has_a_share_of_the_smallest_gpu(
    said: str, found: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert devices.gpu_memory() == found
    told = devices.worker_memory(RuntimeSettings(gpus_per_worker=1))
    assert told == (None if found is None else round(0.6 * found))


def test_without_a_gpu_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.worker_memory(RuntimeSettings(gpus_per_worker=1)) is None
