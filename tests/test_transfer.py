"""A transfer matrix of 400 pairs on a real, local Ray."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import tinystudy
from tinystudy import TEXTS, make_study, make_task

from pitune.config import load_config
from pitune.methods.transfer import wrong_pairs
from pitune.progress import Stage
from pitune.results import TRANSFER
from pitune.study import Study


class Silent:
    def show(self, stages: Sequence[Stage]) -> None:
        """Tell nobody."""


@pytest.mark.slow
def test_twenty_tasks_make_four_hundred_pairs(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of one target in one pack."""
    labels = {f"t{number:02d}": pair for number, pair in enumerate(itertools.permutations(TEXTS, 2))}
    monkeypatch.setattr(tinystudy, "LABELS", labels)
    few = {"steps": 3, "batch_size": 4, "learning_rate": 0.01}
    path = make_study(
        tmp_path,
        tasks={name: make_task(tmp_path / "data", name, rows=60) for name in labels},
        sources=list(labels),
        targets={"tasks": list(labels), "shots": [2], "seeds": [0]},
        transfer={},
        training={"full": {**few, "batch_size": 8}, "few": few, "pack_size": 20, "validation_examples": 8},
    )
    study = Study(load_config(path), goal=TRANSFER)
    study.run(Silent())

    rows = study.store.table(TRANSFER).to_pylist()
    assert {(row["source"], row["slice"]) for row in rows} == {
        (f"{source}@full#0", f"{target}@2#0") for source in labels for target in labels
    }
    assert len(rows) == 400 and not wrong_pairs(study.store) and not list(study.store.problems())
    assert len({round(row["gain"], 6) for row in rows}) > 5
    packs: dict[str, set[str]] = defaultdict(set)
    for artifact, manifest in study.store.artifacts().items():
        if artifact.startswith("transfer/"):
            packs[artifact.split("/")[1]].add(manifest["pack"])
    assert {len(found) for found in packs.values()} == {1} and len(packs) == 20
