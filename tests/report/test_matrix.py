"""The transfer matrix as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pitune.report import matrix_markdown
from pitune.results import TRANSFER
from pitune.store import Store, table_bytes


def row(source: str, target: str, shots: str, seed: int, score: float, single: float) -> dict[str, Any]:
    return {
        **{"source": source, "target": target, "shots": shots, "seed": seed, "slice": f"{target}@{shots}#{seed}"},
        **{"metric": "accuracy", "score": score, "single": single, "gain": score - single},
    }


def test_cells_are_means_over_seeds_and_the_own_task_stands_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert matrix_markdown(store) == "No transfer matrix yet.\n"
    rows = [
        *(row("a@full#0", "a", "16", seed, score, 0.5) for seed, score in ((0, 0.8), (1, 0.9))),
        *(row("a@full#0", "a", "4", seed, 0.4, 0.4) for seed in (0, 1)),
        *(row("a@full#0", "b", "4", seed, score, 0.6 + 0.1 * seed) for seed, score in ((0, 0.62), (1, 0.68))),
        *(row("b@full#0", "a", "16", seed, score, 0.5) for seed, score in ((0, 0.52), (1, 0.56))),
        *(row("b@full#0", "a", "4", seed, 0.38, 0.4) for seed in (0, 1)),
        *(row("b@full#0", "b", "4", seed, 0.9, 0.6 + 0.1 * seed) for seed in (0, 1)),
    ]
    store.commit(TRANSFER, {"": table_bytes(rows)}, "0")
    lines = matrix_markdown(store).splitlines()
    assert lines[:5] == [
        "| start from | a@4 | a@16 | b@4 | mean of other tasks |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a@full#0 | *0.0* | *+35.0* | 0.0 | 0.0 |",
        "| b@full#0 | −2.0 | +4.0 | *+25.0* | +1.0 |",
        "| *single expert scores* | 40.0 | 50.0 | 65.0 |  |",
    ]
    assert lines[6].startswith("Points gained over the target's single expert") and "mean over 2 seeds" in lines[6]


def test_a_source_without_targets_of_other_tasks_has_no_mean(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit(TRANSFER, {"": table_bytes([row("a@full#0", "a", "4", 0, 0.6, 0.5)])}, "0")
    assert "| a@full#0 | *+10.0* | – |" in matrix_markdown(store)
