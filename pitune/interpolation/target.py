"""A target and its neighbours: one trial of an interpolation, and a control of the one that was chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from pitune.errors import PituneError
from pitune.experts import Expert, Lora
from pitune.experts.checkpoint import to_files
from pitune.experts.lora import truncate
from pitune.interpolation.jobs import ControlJob, TuningJob
from pitune.interpolation.settings import Own
from pitune.interpolation.tune import Setting, Tuned, Tuning, Validation, starting_logits, tune
from pitune.materials import Materials
from pitune.objectives.rows import seed_of
from pitune.store import table_bytes


def attempt(
    materials: Materials,
    job: TuningJob,
    k: int,
    temperature: float,
    own: Own,
    rate: float,
    report: Callable[[int, Validation], None],
    experts: Sequence[Expert] | None = None,
) -> Tuned:
    """Tune the interpolation of a target with its first k sources from one start; see :func:`tune`.

    The arguments are those of :func:`tuning`, and ``report``, called with the steps done and the validation.
    """
    validation = materials.rows(((job.slice, 1.0),), "validation")
    chosen = tuning(materials, job, k, temperature, own, rate, experts)
    return tune(Setting.of(materials), chosen, validation, report, job.sweep.validate_every)


def tuning(
    materials: Materials,
    job: TuningJob,
    k: int,
    temperature: float,
    own: Own,
    rate: float,
    experts: Sequence[Expert] | None = None,
) -> Tuning:
    """Return the interpolation of a target with its first k sources, to be tuned.

    Args:
        materials: the study's.
        job: the target, its sources, and how it is tuned.
        k: sources.
        temperature: of the weights' start.
        own: the target's own expert in the mixture.
        rate: the learning rates of weights and experts, as a share of what the job has.
        experts: those that are mixed, the own one last; None: the job's.
    """
    mixed = list(experts or [materials.expert(artifact) for artifact in job.experts(k)])
    if own == "fresh":
        mixed[-1] = materials.start
    logits = starting_logits(job.similarities(k), temperature, job.interpolation.start, own)
    rates = {name: rate * getattr(job.interpolation, name) for name in ("weights_learning_rate", "experts_rate")}
    settings = job.interpolation.model_copy(update=rates)
    return Tuning(mixed, logits, materials.rows(((job.slice, 1.0),), "train"), job.recipe, settings, str(job.slice))


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


def tune_control(materials: Materials, job: ControlJob) -> None:
    """Tune a control by the setting that was chosen for its interpolation, and commit it.

    Raises:
        PituneError: the interpolation is not there, or see :func:`tune`.
    """
    began = time.perf_counter()
    chosen = materials.store.manifest(job.of)
    if chosen is None:
        raise PituneError(f"{materials.store.where(job.of)}: is not there or not finished; run the study again")
    k, temperature, own, rate = (chosen[name] for name in ("top_k", "temperature", "own", "rate"))
    experts = [materials.expert(artifact) for artifact in job.experts(k)]
    if job.randomized:
        experts[:k] = [
            random_expert(materials, expert, f"{job.slice} {source}")
            for expert, source in zip(experts[:k], job.members(k)[:k], strict=True)
        ]
    tuned = attempt(materials, job, k, temperature, own, rate, lambda step, found: None, experts)
    files, error = interpolation_files(materials, job, k, tuned)
    materials.store.commit(
        job.artifacts[0],
        files,
        job.fingerprint,
        inputs=job.inputs,
        slice=str(job.slice),
        members=job.members(k),
        randomized=job.randomized,
        shared=sorted({*job.members(k)[:k]} & {*chosen["members"][:k]}),
        top_k=k,
        temperature=temperature,
        own=own,
        rate=rate,
        validation=asdict(tuned.validation),
        trials=1,
        steps=job.recipe.steps,
        rank_error=error,
        seconds=time.perf_counter() - began,
    )


def random_expert(materials: Materials, expert: Expert, name: str) -> Expert:
    """Return an expert of the same shapes and norms as ``expert`` and random directions, which ``name`` draws."""
    generator = torch.Generator().manual_seed(seed_of(name))
    start = materials.start
    return {path: materials.kind.randomized(expert[path], start[path], generator) for path in sorted(expert)}
