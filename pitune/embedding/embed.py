"""A slice's task embedding as an artifact."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from pitune.embedding.fisher import fisher
from pitune.experts import Expert
from pitune.materials import Materials
from pitune.store import Job, Store, table_bytes
from pitune.tasks.task import Slice


@dataclass(frozen=True)
class EmbeddingJob(Job):
    """A slice to embed, by its own expert."""

    slice: Slice


def embed(materials: Materials, job: EmbeddingJob) -> None:
    """Compute and commit a slice's task embedding."""
    began = time.perf_counter()
    config = materials.config
    rows = materials.embedded_rows(job.slice)
    expert = materials.expert(f"experts/{job.slice}")
    found = fisher(config.expert, expert, rows, labels=config.embedding.labels, name=str(job.slice))
    table = [
        {"parameter": f"{site}|{key}", "shape": list(tensor.shape), "fisher": tensor.flatten().numpy()}
        for site, held in found.items()
        for key, tensor in held.items()
    ]
    materials.store.commit(
        job.artifacts[0],
        {"": table_bytes(table)},
        job.fingerprint,
        inputs=job.inputs,
        examples=len(rows),
        seconds=time.perf_counter() - began,
    )


def read_embedding(store: Store, chosen: str) -> Expert:
    """Read a committed task embedding, in the shape of an expert."""
    found: Expert = {}
    for row in store.table(f"embeddings/{chosen}.parquet").to_pylist():
        site, key = row["parameter"].split("|")
        values = np.asarray(row["fisher"], dtype=np.float32).reshape(row["shape"])
        found.setdefault(site, {})[key] = torch.from_numpy(values)
    return found
