"""Weights of sources' experts, found without gradients on the target's shots (LoraHub, arXiv 2307.13269).

As there: nevergrad's NGOpt, weights in [-1.5, 1.5] from zero, the loss on the shots plus a penalty on the weights' mean
size. Otherwise: updates are added up, where LoraHub multiplies its sums of A and of B; so it serves every kind. All
settings are searched side by side, each by an optimizer of its own, their experts on the expert axis.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pitune.experts import Bank, Expert
from pitune.interpolation.jobs import WeightSearchJob
from pitune.interpolation.merging import Candidate, added_up, keep_best
from pitune.interpolation.tune import Setting
from pitune.materials import Materials
from pitune.objectives import Row, Rows
from pitune.objectives.rows import seed_of

BOUND = 1.5  # of a weight's size
BATCH = 64  # rows of all settings together
WORST = 1e6  # stands for a loss that is not a number, or larger
DIGITS = 4
"""Decimals of a loss as the optimizer sees it: what lies beyond depends on how a machine adds, and would send it
elsewhere from one run to the next."""


def search_weights(materials: Materials, job: WeightSearchJob) -> None:
    """Search the weights by every setting and commit the best merge on validation data; see :func:`keep_best`."""
    began = time.perf_counter()
    kind, start = materials.kind, materials.start
    most = max(setting["top_k"] for setting in job.tried)
    experts = [materials.expert(artifact) for artifact in job.experts(most)]
    names = [_members(job, setting) for setting in job.tried]
    banks = [Bank(kind, _chosen(experts, setting)) for setting in job.tried]
    searches = [_Search(bank.size, job, " ".join(held)) for bank, held in zip(banks, names, strict=True)]
    shots = Shots(Setting.of(materials), _some(materials.rows(((job.slice, 1.0),), "train"), job), len(banks))
    for _ in range(job.evaluations):
        asked = [search.ask() for search in searches]
        merged = [added_up(bank, start, weights) for bank, weights in zip(banks, asked, strict=True)]
        for search, setting, loss in zip(searches, job.tried, shots.losses(merged), strict=True):
            search.tell(loss, setting["penalty"])
    found = []
    for bank, search, setting, held in zip(banks, searches, job.tried, names, strict=True):
        weights = search.best()
        found.append(Candidate(added_up(bank, start, weights), {**setting, "weights": weights}, held))
    keep_best(materials, job, found, began, len(job.tried) * job.evaluations)


class Shots:
    """The loss on a target's shots, of E experts in one pass.

    Args:
        setting: what they act on, and what is asked.
        rows: the shots; what no expert touches of them is computed here, once.
        count: E.
    """

    def __init__(self, setting: Setting, rows: Sequence[Row], count: int) -> None:
        self.setting, self.count = setting, len(rows)
        each = max(1, BATCH // count)
        self._batches = [setting.batch([rows[at : at + each]] * count) for at in range(0, len(rows), each)]

    @torch.no_grad()
    def losses(self, experts: Sequence[Expert]) -> list[float]:
        """Return the mean loss of each."""
        setting = self.setting
        bank = Bank(setting.kind, experts).to(setting.backbone.device)
        parts = [setting.objective.losses(setting.backbone, bank, batch).double().sum(1) for batch in self._batches]
        found: list[float] = (torch.stack(parts).sum(0) / self.count).tolist()
        return found


class _Search:
    """One setting's optimizer: it is asked for weights and told their loss, in turn."""

    def __init__(self, count: int, job: WeightSearchJob, name: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what nevergrad may use and is not there
            import nevergrad
        # NGOpt takes it for few evaluations, with bounds that it corrects, in a thread of its own.
        warnings.filterwarnings("ignore", "COBYLA")
        weights = nevergrad.p.Array(init=np.zeros(count), lower=-BOUND, upper=BOUND)
        weights.random_state = np.random.RandomState(seed_of(name) % 2**32)
        self._optimizer: Any = nevergrad.optimizers.NGOpt(weights, budget=job.evaluations)
        self._asked: Any = None

    def ask(self) -> list[float]:
        """Return weights to try."""
        self._asked = self._optimizer.ask()
        return [float(weight) for weight in self._asked.value]

    def tell(self, loss: float, penalty: float) -> None:
        """Take the loss of what was asked for last; a penalty is on the weights' mean size."""
        whole = loss + penalty * float(np.abs(self._asked.value).mean())
        self._optimizer.tell(self._asked, round(whole, DIGITS) if whole < WORST else WORST)

    def best(self) -> list[float]:
        """Return the weights that the optimizer recommends."""
        return [float(weight) for weight in self._optimizer.provide_recommendation().value]


def _members(job: WeightSearchJob, setting: Any) -> list[str]:
    names = job.members(setting["top_k"])
    return names if setting["own"] else names[:-1]


def _chosen(experts: Sequence[Expert], setting: Any) -> list[Expert]:
    """Return a setting's experts."""
    return [*experts[: setting["top_k"]], *(experts[-1:] if setting["own"] else [])]


def _some(rows: Rows, job: WeightSearchJob) -> list[Row]:
    """Return the shots that are looked at: all, or as many as a job says, the same in every evaluation."""
    if len(rows) <= job.rows:
        return rows.rows
    return rows.take(rows.order(str(job.slice), 1, job.rows)[0].tolist())
