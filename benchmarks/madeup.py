"""Studies that are made up: tables of texts, and a backbone that nobody opens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def made_up(folder: Path, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Write a table of each task's texts, of two labels in turn; return a study's folder, backbone and tasks."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"model_type": "bert"}')
    tasks = {}
    for task, rows in texts.items():
        lines = [{"text": text, "label": "ab"[row % 2]} for row, text in enumerate(rows)]
        path = folder / f"{task}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        tasks[task] = {"train": str(path), "labels": {"a": "one kind", "b": "other kind"}}
    return {"study": str(folder / "study"), "backbone": {"uri": str(folder / "model")}, "tasks": tasks}
