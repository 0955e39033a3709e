"""What tests of merges and controls share: a target with three sources, their experts in a store."""

from __future__ import annotations

from pathlib import Path

import torch
from tinymodel import random_expert
from tinystudy import make_materials

from pitune.experts import Bank, Expert
from pitune.experts.checkpoint import to_files
from pitune.interpolation.jobs import Neighbour
from pitune.materials import Materials
from pitune.objectives import right
from pitune.tasks.task import Slice

TARGET = Slice("a", 4, 0)
SOURCES = ("b@2#0", "b@2#1", "b@2#2")
SIMILARITIES = (0.8, 0.5, 0.1)
NEAR = tuple(Neighbour(name, at, f"experts/{name}") for name, at in zip(SOURCES, SIMILARITIES, strict=True))


def materials_with_experts(folder: Path, encoder: Path) -> Materials:
    """Return materials whose store has the sources' and the target's own expert."""
    made = make_materials(folder, encoder, steps=6)
    for seed, name in enumerate((*SOURCES, str(TARGET))):
        files = to_files(made.kind, random_expert(made.kind, made.backbone, seed, 0.3), "tiny")
        made.store.commit(f"experts/{name}", files, "mark")
    return made


def experts_of(materials: Materials) -> list[Expert]:
    """Return them, the target's own last."""
    return [materials.expert(f"experts/{name}") for name in (*SOURCES, str(TARGET))]


def plain_scores(materials: Materials, expert: Expert, split: str = "validation") -> tuple[float, float]:
    """Score one expert on the target's rows, alone and row by row: its mean loss and accuracy."""
    rows = materials.rows(((TARGET, 1.0),), split)
    loss = hits = 0.0
    with torch.no_grad():
        for row in rows.rows:
            batch = materials.objective.collate(materials.backbone, materials.firsts, [[row]])
            found = materials.objective.answers(materials.backbone, Bank(materials.kind, [expert]), batch)
            loss += float(found.losses)
            hits += float(right(found, [[row]]))
    return loss / len(rows), hits / len(rows)
