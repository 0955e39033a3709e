"""A finished study, made up but for its experts."""

from __future__ import annotations

from pathlib import Path

from tinymodel import random_expert

from pitune.backbones.text import TextBackbone
from pitune.experts import ExpertKind
from pitune.experts.checkpoint import to_files
from pitune.store import Store, table_bytes

TARGET = "alpha@2#0"
MEMBERS = ("beta@full#0", "gamma@full#0", TARGET)
WEIGHTS = {"one": (0.5, 0.2, 0.3), "two": (0.1, 0.4, 0.5)}
"""What the members weigh at each of two sites."""
SCORES = {"zero_shot": 0.5, "single": 0.625, "uniform": 0.65, "pi": 0.75}


def make_study(folder: Path, encoder: TextBackbone, kind: ExpertKind, uri: str) -> Store:
    """Commit what export reads of a study with one target."""
    store = Store(folder)
    labels = [{"label": "neg", "text": "a bad | film"}, {"label": "pos", "text": "a good film"}]
    card = {"labels.parquet": table_bytes(labels)}
    store.commit("tasks/alpha", card, "t", modality="text", metric="accuracy", labels=2, examples={"test": 8})
    rows = [
        {"site": site, "tower": "text", "layer": 0, "member": member, "start": 1 / 3, "weight": weight}
        for site, weights in WEIGHTS.items()
        for member, weight in zip(MEMBERS, weights, strict=True)
    ]
    files = to_files(kind, random_expert(kind, encoder, 0), uri)
    weights = {"weights.parquet": table_bytes(rows)}
    store.commit(f"interpolations/{TARGET}", {**files, **weights}, "pi-mark", members=list(MEMBERS))
    store.commit(f"experts/{TARGET}", to_files(kind, random_expert(kind, encoder, 1), uri), "single-mark")
    store.commit(f"baselines/{TARGET}/uniform", files, "uniform-mark", members=list(MEMBERS))
    experts = {"pi": "interpolations", "single": "experts"}
    table = []
    for method, value in SCORES.items():
        artifact = f"{experts[method]}/{TARGET}" if method in experts else f"baselines/{TARGET}/{method}"
        expert = None if method == "zero_shot" else artifact
        prediction = f"predictions/{TARGET}/{method}.parquet"
        backbone = {"sha256": "ab" * 32, "kind": "text", "pooling": "mean", "max_tokens": 24}
        inputs = {"backbone": backbone, "objective": {"kind": "match", "scale": 20.0}}
        inputs["expert"] = f"{method}-mark" if expert else ""  # type: ignore[assignment]
        store.commit(prediction, {"": table_bytes([{"key": "a"}])}, "p", inputs=inputs, expert=expert)
        of = {"method": method, "task": "alpha", "shots": "2", "seed": 0, "slice": TARGET, "metric": "accuracy"}
        table.append({**of, "value": value, "examples": 8, "trials": 1, "prediction": prediction})
    store.commit("results.parquet", {"": table_bytes(table)}, "study-mark")
    return store
