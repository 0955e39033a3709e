"""The small ones of the catalogue's pictures, from the real packages: the sizes that their modules document."""

from __future__ import annotations

import pytest

from pitune.tasks.catalogue import load_task

SIZES = {"mnist5k": (2959, 751, 1290), "silhouettes": (5747, 1459, 2524)}
FINGERPRINTS = {
    "mnist5k": "7494297f2286f084d2e5c3a13221deec49d55932fbdd84f9ecf5afa77c3fbd3b",
    "silhouettes": "cb4cbfd3ccbe6c3786e512c013bcc4a7c1f63d6c04f818f2d77b3c7e2a643299",
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_documented_and_the_same_on_every_machine(name: str) -> None:
    task = load_task(name)
    assert tuple(len(task.splits[split]) for split in ("train", "validation", "test")) == SIZES[name]
    assert task.fingerprint == FINGERPRINTS[name]
    example = task.splits["test"][0]
    assert example.picture is not None and example.picture.pixels().size == (28, 28)
