"""A target and its neighbours: one trial of an interpolation, and the plain average it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pitune.experts import Expert, Lora
from pitune.experts.checkpoint import to_files
from pitune.experts.lora import truncate
from pitune.interpolation.mixture import Mixture, merge
from pitune.interpolation.settings import Own
from pitune.interpolation.tune import Tuned, Validation, starting_logits, tune, validate
from pitune.materials import Materials
from pitune.store import Job, table_bytes
from pitune.tasks.task import Slice


@dataclass(frozen=True)
class Target(Job):
    """A target slice with its nearest sources, nearest first."""

    slice: Slice
    neighbours: tuple[tuple[str, float], ...]  # source slice, similarity

    def members(self, k: int) -> list[str]:
        """Return the slices whose experts are mixed: the k nearest and, last, the target itself."""
        return [name for name, _ in self.neighbours[:k]] + [str(self.slice)]

    def experts(self, materials: Materials, k: int) -> list[Expert]:
        """Read the members' experts."""
        return [materials.expert(f"experts/{name}") for name in self.members(k)]


def attempt(
    materials: Materials,
    target: Target,
    k: int,
    temperature: float,
    own: Own,
    report: Callable[[int, Validation], None],
) -> Tuned:
    """Tune the interpolation of a target with its k nearest from one start; see :func:`tune`."""
    config = materials.config
    similarities = [similarity for _, similarity in target.neighbours[:k]]
    materials.forget_rows(but=target.slice.task)
    experts = target.experts(materials, k)
    if own == "fresh":
        experts[-1] = materials.start
    return tune(
        config.expert,
        experts,
        starting_logits(similarities, temperature, config.interpolation.start, own),
        materials.rows(target.slice, "train"),
        materials.rows(target.slice, "validation"),
        config.training.recipe(target.slice),
        config.interpolation,
        str(target.slice),
        report,
        config.sweep.validate_every,
    )


def interpolation_files(materials: Materials, target: Target, k: int, tuned: Tuned) -> tuple[dict[str, bytes], float]:
    """Return a tuned interpolation's files (merged expert, weights, curve), and the error of cutting its rank."""
    config = materials.config
    merged, error = tuned.mixture.merged(), 0.0
    if config.interpolation.max_rank and isinstance(config.expert, Lora):
        merged, error = truncate(merged, config.interpolation.max_rank)
    files = to_files(config.expert, merged, config.backbone.uri)
    files["weights.parquet"] = table_bytes(weight_rows(target.members(k), tuned))
    files["curve.parquet"] = table_bytes(tuned.curve)
    return files, error


def weight_rows(members: Sequence[str], tuned: Tuned) -> list[dict[str, object]]:
    """Return the mixture's weights as rows of ``weights.parquet``."""
    weights = tuned.mixture.weights().detach().cpu()
    return [
        {
            "site": site,
            "member": member,
            "start": float(tuned.start[row, column]),
            "weight": float(weights[row, column]),
        }
        for row, (site, _) in enumerate(tuned.mixture.members.named_sites())
        for column, member in enumerate(members)
    ]


def average(materials: Materials, target: Target) -> None:
    """Commit the plain average of a target's neighbours and its own expert, nothing tuned.

    How many neighbours is chosen as for the interpolation: among the sweep's, by validation loss.
    """
    began = time.perf_counter()
    config = materials.config
    materials.forget_rows(but=target.slice.task)
    validation = materials.rows(target.slice, "validation")
    found: dict[int, Validation] = {}
    for k in sorted(set(config.sweep.top_k)):
        mixture = Mixture(config.expert, target.experts(materials, k), torch.zeros(k + 1), "global")
        found[k] = validate(mixture.to(materials.backbone.device), validation)
    k = min(found, key=lambda k: (found[k].loss, k))
    expert = merge(config.expert, target.experts(materials, k), [1 / (k + 1)] * (k + 1))
    materials.store.commit(
        target.artifacts[0],
        to_files(config.expert, expert, config.backbone.uri),
        target.fingerprint,
        inputs=target.inputs,
        slice=str(target.slice),
        top_k=k,
        members=target.members(k),
        validation={str(k): vars(one) for k, one in found.items()},
        seconds=time.perf_counter() - began,
    )
