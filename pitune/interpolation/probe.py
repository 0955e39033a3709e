"""A linear probe: logistic regression on what the frozen backbone makes of a target's shots (arXiv 2103.00020, A.3).

As there: scikit-learn's L-BFGS, 1,000 iterations at most, the strength of the L2 penalty swept over 1e-6 … 1e6 on
validation data, coarsely first, then by halves around the best. Otherwise: the validation loss decides, as
for every method, and the probe is not fitted once more with the validation examples: no other method learns from them.

All is float64 and nothing is random, so that a fit is the same whenever it is made.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from pitune.backbones import Backbone
from pitune.interpolation.jobs import ProbeJob
from pitune.interpolation.scoring import ScoringJob, commit_predictions
from pitune.materials import Materials
from pitune.tasks.task import Example

Numbers = NDArray[np.float64]
FIRST = (0.0, 2.0, -2.0, 4.0, -4.0, 6.0, -6.0)
"""Powers of ten of C, the inverse of the penalty's strength, that are tried first, from the middle outwards."""
FINEST = 1 / 8
"""Of a power of ten: how near to the best the last ones lie."""
ITERATIONS = 1000
DIGITS = 8
"""Decimals of a validation loss that count: what lies beyond depends on how a machine adds."""
FILE = "probe.safetensors"


class Probe(NamedTuple):
    """A linear classifier: a row of ``weight`` (labels, width) and a number of ``bias`` (labels,) for each label."""

    weight: Numbers
    bias: Numbers

    def probabilities(self, features: Numbers) -> Numbers:
        """Return how likely each label is of each example: from (examples, width) to (examples, labels)."""
        from scipy.special import softmax

        found: Numbers = softmax(features @ self.weight.T + self.bias, axis=1)
        return found


def fit_probe(materials: Materials, job: ProbeJob) -> None:
    """Fit a probe by each strength of the penalty and commit the one with the lowest validation loss."""
    began = time.perf_counter()
    backbone, data = materials.backbone, materials.data(job.slice)
    train, held_out = (features(backbone, part) for part in (data.train, data.validation))
    labels, right = ([example.labels[0] for example in part] for part in (data.train, data.validation))
    probes: dict[float, Probe] = {}
    iterations = 0

    def loss(power: float) -> float:
        nonlocal iterations
        probes[power], took = fit(train, labels, 10**power)
        iterations += took
        likely = probes[power].probabilities(held_out)[np.arange(len(right)), right]
        return round(float(-np.log(np.maximum(likely, np.finfo(np.float64).tiny)).mean()), DIGITS)

    losses = swept(loss, job.trials)
    best = min(losses, key=lambda power: losses[power])  # of equals the first
    hits = probes[best].probabilities(held_out).argmax(1) == right
    tensors = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in probes[best]._asdict().items()}
    materials.store.commit(
        job.artifacts[0],
        {FILE: save(tensors)},
        job.fingerprint,
        inputs=job.inputs,
        slice=str(job.slice),
        c=10**best,
        validation={"loss": losses[best], "accuracy": float(hits.mean())},
        tried=[{"c": 10**power, "loss": found} for power, found in losses.items()],
        trials=len(losses),
        steps=iterations,
        seconds=time.perf_counter() - began,
    )


def score_probes(materials: Materials, jobs: Sequence[ScoringJob]) -> None:
    """Let probes of one task predict its test examples, and commit the predictions."""
    began = time.perf_counter()
    examples = features(materials.backbone, materials.test(jobs[0].task))
    found = [_read(materials, job).probabilities(examples) for job in jobs]
    seconds = (time.perf_counter() - began) / len(jobs)
    for job, likely in zip(jobs, found, strict=True):
        commit_predictions(materials, job, likely.argmax(1).tolist(), likely.max(1).tolist(), seconds)


def _read(materials: Materials, job: ScoringJob) -> Probe:
    assert job.expert is not None
    held: dict[str, Any] = load(materials.store.read(job.expert, FILE))
    return Probe(**{name: tensor.numpy() for name, tensor in held.items()})


def features(backbone: Backbone, examples: Sequence[Example]) -> Numbers:
    """Return the frozen embeddings of examples, each of length 1: (examples, width)."""
    rows = [replace(row, again=False) for row in backbone.encode(examples)]
    found: Numbers = torch.stack(backbone.frozen(rows, None)).double().cpu().numpy()
    return found


def fit(train: Numbers, labels: Sequence[int], c: float) -> tuple[Probe, int]:
    """Fit a probe.

    Args:
        train: features, (examples, width).
        labels: of the examples, from 0, none left out.
        c: the inverse of the penalty's strength.

    Returns:
        The probe, and the iterations that it took.
    """
    from sklearn.exceptions import ConvergenceWarning  # late: it takes a second
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # next to no penalty has no minimum to come to
        fitted = LogisticRegression(C=c, solver="lbfgs", max_iter=ITERATIONS).fit(train, labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # of two labels: the log of the odds of the second
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
    return Probe(weight, bias), int(fitted.n_iter_.max())


def swept(loss: Callable[[float], float], trials: int) -> dict[float, float]:
    """Return the losses at so many powers of ten at most, in the order in which they are tried.

    First those of :data:`FIRST`, then those at half the distance on both sides of the best so far, and so forth.
    """
    found = {power: loss(power) for power in FIRST[:trials]}
    distance = max(FIRST) / 3
    while distance > FINEST:
        distance /= 2
        best = min(found, key=lambda power: found[power])
        for power in (best - distance, best + distance):
            if abs(power) <= max(FIRST) and len(found) < trials:
                found[power] = loss(power)
    return found
