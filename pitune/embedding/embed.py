"""A slice's task embedding as an artifact, and the same with the other labels beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pitune.embedding.fisher import fishers
from pitune.embedding.spaces import Labels
from pitune.experts import Expert
from pitune.materials import Materials, sample
from pitune.store import Job, table_bytes
from pitune.tasks.task import Example, Slice


@dataclass(frozen=True)
class EmbeddingJob(Job):
    """A slice to embed by its expert (an artifact), over so many of its examples at most.

    ``labels`` says which ones each artifact's embedding is of: different ones.
    """

    slice: Slice
    expert: str
    labels: tuple[Labels, ...]
    examples: int


def embed(materials: Materials, job: EmbeddingJob) -> None:
    """Compute and commit a slice's task embeddings, those that are not there.

    One that is there is kept as it is: were it computed anew, it could differ in its last digits, and a target's
    neighbours with it.
    """
    began = time.perf_counter()
    store = materials.store
    wanted = {
        labels: artifact
        for artifact, labels in zip(job.artifacts, job.labels, strict=True)
        if not store.is_current(artifact, job.fingerprint)
    }
    if not wanted:
        return
    rows = materials.rows_of(job.slice.task, embedded(materials, job.slice, job.examples), again=False)
    found = fishers(
        materials.backbone,
        materials.kind,
        materials.objective,
        materials.expert(job.expert),
        rows,
        tuple(wanted),
        name=str(job.slice),
    )
    seconds = (time.perf_counter() - began) / len(wanted)
    for (labels, artifact), one in zip(wanted.items(), found, strict=True):
        store.commit(
            artifact,
            {"": _table(one)},
            job.fingerprint,
            inputs=job.inputs,
            labels=labels,
            examples=len(rows),
            seconds=seconds,
        )


def embedded(materials: Materials, chosen: Slice, most: int) -> tuple[Example, ...]:
    """Return the examples that stand for a slice: ``most`` of its training examples, the same whenever asked."""
    return sample(materials.data(chosen).train, most, f"fisher {chosen}")


def _table(embedding: Expert) -> bytes:
    table = [
        {"parameter": f"{site}|{key}", "shape": list(tensor.shape), "fisher": tensor.flatten().numpy()}
        for site, held in embedding.items()
        for key, tensor in held.items()
    ]
    return table_bytes(table)
