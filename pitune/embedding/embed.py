"""A slice's task embedding as an artifact."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pitune.embedding.fisher import fisher
from pitune.embedding.settings import Labels
from pitune.materials import Materials, sample
from pitune.store import Job, table_bytes
from pitune.tasks.task import Slice


@dataclass(frozen=True)
class EmbeddingJob(Job):
    """A slice to embed by its expert (an artifact), over so many of its examples at most."""

    slice: Slice
    expert: str
    labels: Labels
    examples: int


def embed(materials: Materials, job: EmbeddingJob) -> None:
    """Compute and commit a slice's task embedding."""
    began = time.perf_counter()
    examples = sample(materials.data(job.slice).train, job.examples, f"fisher {job.slice}")
    rows = materials.rows_of(job.slice.task, examples, again=False)
    found = fisher(
        materials.backbone,
        materials.kind,
        materials.objective,
        materials.expert(job.expert),
        rows,
        labels=job.labels,
        name=str(job.slice),
    )
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
