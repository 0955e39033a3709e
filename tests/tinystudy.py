"""A whole study small enough for a test: a tiny random BERT and three made-up tasks, on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tinymodel
import yaml
from tinymodel import WORDS, save_encoder

import pitune
from pitune.config import StudyConfig, load_config
from pitune.materials import Materials
from pitune.plan import materials_of
from pitune.store import Store

CONFIGS = Path(pitune.__file__).parents[1] / "configs"
SHIPPED = [
    path
    for path in sorted(CONFIGS.glob("*.yaml"))
    if path.name not in ("align.yaml", "bridge.yaml") and "PITUNE_DATA" not in path.read_text()
]
"""The studies that come along, but for those whose data one has to have, which test_benchmarks.py is about."""
LABELS = {"alpha": ("good", "bad"), "beta": ("good", "bad", "odd"), "gamma": ("yes", "no")}
TEXTS = {"good": "w50", "bad": "w51", "odd": "w52", "yes": "w53", "no": "w54"}


def make_task(folder: Path, name: str, rows: int = 150, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Write a task in which each label has words of its own; return its table for the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = labels or LABELS[name]
    generator = np.random.default_rng(len(name))
    lines = []
    for row in range(rows):
        label = row % len(labels)
        own = [WORDS[10 * label + int(i)] for i in generator.integers(0, 10, 4)]
        other = [WORDS[int(i)] for i in generator.integers(30, 60, int(generator.integers(2, 9)))]
        lines.append(json.dumps({"text": " ".join([*own, *other, f"w{row % 60}"]), "label": labels[label]}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return {"train": str(path), "labels": {label: TEXTS[label] for label in labels}}


def tasks_with_zeta(config: Path, folder: Path) -> dict[str, Any]:
    """Return the tasks of a study's configuration and one more, ``zeta``, whose table goes into ``folder``."""
    tasks = load_config(config).tasks
    settings: dict[str, Any] = {name: source and source.model_dump() for name, source in tasks.items()}
    return {**settings, "zeta": make_task(folder, "zeta", labels=("good", "bad"))}


def make_materials(folder: Path, encoder: Path, steps: int) -> Materials:
    """Make the materials of two made-up tasks, ``a`` and ``b``, with the store in ``folder``."""
    values = {
        "study": str(folder),
        "backbone": {"uri": str(encoder), "max_tokens": 24},
        "tasks": {name: {"train": "unused.csv", "labels": {"0": "w1", "1": "w2"}} for name in ("a", "b")},
        "expert": {"kind": "lora", "rank": 2, "layers": 2},
        "sources": ["a", "b"],
        "targets": ["a@2#0"],
        "sweep": {"top_k": [1], "validate_every": 2},
        "training": {"few": {"steps": steps, "batch_size": 4, "learning_rate": 0.02}},
    }
    made = materials_of(StudyConfig.model_validate(values), Store(folder))
    made._tasks = {name: tinymodel.make_task(name, 2, 40) for name in ("a", "b")}
    return made


def make_study(folder: Path, **changes: Any) -> Path:
    """Write a study of three sources and two targets; return the path of its configuration."""
    settings: dict[str, Any] = {
        "study": str(folder / "study"),
        "backbone": {"uri": str(save_encoder(folder / "model", "bert")), "max_tokens": 16},
        "tasks": {name: make_task(folder / "data", name) for name in LABELS},
        "expert": {"kind": "lora", "rank": 2, "alpha": 2, "layers": 1},
        "sources": list(LABELS),
        "targets": ["alpha@2#0", "beta@2#1"],
        "methods": ["zero_shot", "single", "uniform", "nearest", "pi", "full"],
        "training": {
            "full": {"steps": 6, "batch_size": 8, "learning_rate": 0.01},
            "few": {"steps": 4, "batch_size": 4, "learning_rate": 0.01},
            "validation_examples": 20,
        },
        "embedding": {"examples": 16},
        "sweep": {"top_k": [1, 2], "temperature": [0.5], "validate_every": 2, "trials": 1},
    }
    settings.update(changes)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
