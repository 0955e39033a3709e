"""A target and its neighbours: one trial of an interpolation, and the plain average it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from pitune.experts import Expert, Lora
from pitune.experts.checkpoint import to_files
from pitune.experts.lora import truncate
from pitune.interpolation.jobs import AverageJob, TuningJob
from pitune.interpolation.mixture import Mixture, merge
from pitune.interpolation.settings import Own
from pitune.interpolation.tune import Setting, Tuned, Validation, starting_logits, tune, validate
from pitune.materials import Materials
from pitune.store import table_bytes


def attempt(
    materials: Materials,
    job: TuningJob,
    k: int,
    temperature: float,
    own: Own,
    report: Callable[[int, Validation], None],
) -> Tuned:
    """Tune the interpolation of a target with its k nearest from one start; see :func:`tune`."""
    experts = _read(materials, job.experts(k))
    if own == "fresh":
        experts[-1] = materials.start
    data = ((job.slice, 1.0),)
    return tune(
        _setting(materials),
        experts,
        starting_logits(job.similarities(k), temperature, job.interpolation.start, own),
        materials.rows(data, "train"),
        materials.rows(data, "validation"),
        job.recipe,
        job.interpolation,
        str(job.slice),
        report,
        job.sweep.validate_every,
    )


def interpolation_files(materials: Materials, job: TuningJob, k: int, tuned: Tuned) -> tuple[dict[str, bytes], float]:
    """Return a tuned interpolation's files (merged expert, weights, curve), and the error of cutting its rank."""
    merged, error = tuned.mixture.merged(), 0.0
    if job.interpolation.max_rank and isinstance(materials.kind, Lora):
        merged, error = truncate(merged, job.interpolation.max_rank)
    files = to_files(materials.kind, merged, materials.settings.uri)
    files["weights.parquet"] = table_bytes(weight_rows(job.members(k), tuned))
    files["curve.parquet"] = table_bytes(tuned.curve)
    return files, error


def weight_rows(members: Sequence[str], tuned: Tuned) -> list[dict[str, object]]:
    """Return the mixture's weights as rows of ``weights.parquet``."""
    weights = tuned.mixture.weights().detach().cpu()
    return [
        {
            "site": site.path,
            "tower": site.tower,
            "layer": site.layer,
            "member": member,
            "start": float(tuned.start[row, column]),
            "weight": float(weights[row, column]),
        }
        for row, site in enumerate(tuned.mixture.sites)
        for column, member in enumerate(members)
    ]


def average(materials: Materials, job: AverageJob) -> None:
    """Commit the plain average of a target's neighbours and its own expert, nothing tuned.

    How many neighbours is chosen as for the interpolation: among the sweep's, by validation loss.
    """
    began = time.perf_counter()
    setting, rows = _setting(materials), materials.rows(((job.slice, 1.0),), "validation")
    found: dict[int, Validation] = {}
    for k in sorted(set(job.top_k)):
        mixture = Mixture(
            setting.backbone, setting.kind, _read(materials, job.experts(k)), torch.zeros(k + 1), "global"
        )
        found[k] = validate(setting, mixture.to(setting.backbone.device), rows)
    k = min(found, key=lambda k: (found[k].loss, k))
    expert = merge(setting.backbone, setting.kind, _read(materials, job.experts(k)), [1 / (k + 1)] * (k + 1))
    materials.store.commit(
        job.artifacts[0],
        to_files(materials.kind, expert, materials.settings.uri),
        job.fingerprint,
        inputs=job.inputs,
        slice=str(job.slice),
        top_k=k,
        members=job.members(k),
        validation={str(k): vars(one) for k, one in found.items()},
        seconds=time.perf_counter() - began,
    )


def _setting(materials: Materials) -> Setting:
    return Setting(materials.backbone, materials.kind, materials.objective, materials.firsts)


def _read(materials: Materials, artifacts: Sequence[str]) -> list[Expert]:
    return [materials.expert(artifact) for artifact in artifacts]
