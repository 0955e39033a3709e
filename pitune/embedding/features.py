"""What the frozen backbone makes of a slice, as an artifact: it depends on no expert."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pitune.backbones import Backbone, Encoded
from pitune.embedding.embed import embedded
from pitune.materials import Materials
from pitune.store import Job, table_bytes
from pitune.tasks.task import Slice


@dataclass(frozen=True)
class FeaturesJob(Job):
    """A slice to embed without an expert, by so many of its examples at most."""

    slice: Slice
    examples: int


def make_features(materials: Materials, job: FeaturesJob) -> None:
    """Commit the mean frozen feature of a slice's examples (those of its task embedding) and of its label texts.

    A feature is the backbone's embedding, of length 1: a row's in ``examples_tower``, a label's in ``texts_tower``.
    """
    began = time.perf_counter()
    backbone = materials.backbone
    examples = embedded(materials, job.slice, job.examples)
    rows = [replace(row, again=False) for row in backbone.encode(examples)]
    texts = backbone.encode_texts(materials.task(job.slice.task).label_texts)
    means = {"examples": mean_feature(backbone, rows), "labels": mean_feature(backbone, texts)}
    table = [{"of": of, "mean": mean.numpy()} for of, mean in means.items()]
    materials.store.commit(
        job.artifacts[0],
        {"": table_bytes(table)},
        job.fingerprint,
        inputs=job.inputs,
        examples=len(rows),
        seconds=time.perf_counter() - began,
    )


def mean_feature(backbone: Backbone, rows: Sequence[Encoded]) -> Tensor:
    """Return the mean of the rows' frozen embeddings, (width,), float32; no expert acts."""
    return torch.stack(backbone.frozen(rows, None)).double().mean(0).float().cpu()
