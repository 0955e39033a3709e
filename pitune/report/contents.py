"""What a study holds so far, read from its store into plain values.

Every reader returns something empty where the study has not come that far. Slices are split without judging their
names, so that a report can be made of whatever is there; escaping is the page's work.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from pitune.errors import PituneError
from pitune.results import COMMON, PAIRS, TRANSFER
from pitune.store import Store

OF_SLICES = ("experts", "embeddings", "features", "slices")
"""Families that have an artifact for sources too, not for targets alone."""
OF_TARGETS = ("predictions", "baselines")
"""Families that have artifacts of a task as a whole, which its targets share."""
OWN = "own expert"
"""How a target's own expert is called among the members of its interpolation."""
TRAINED = "trained"
"""The own expert that a trial began with where its table does not say."""

Group = tuple[str, str]
"""A task and its shots as text: all seeds of one kind of slice."""
Manifests = dict[str, dict[str, Any]]


def split_slice(text: str) -> tuple[str, str, int]:
    """Split ``movie@16#0`` into task, shots (text) and seed; what is missing is empty or 0."""
    task, at, rest = text.rpartition("@")
    if not at:
        return text, "", 0
    shots, _, seed = rest.partition("#")
    return task, shots, int(seed) if seed.isdigit() else 0


def shots_order(shots: str) -> tuple[float, str]:
    """Return a sort key: 4 before 16, both before ``full``."""
    return (float(shots), "") if shots.isdigit() else (math.inf, shots)


def group_order(group: Group) -> tuple[str, tuple[float, str]]:
    """Return a sort key: by task, then by shots."""
    return group[0], shots_order(group[1])


def group_name(group: Group) -> str:
    """Return ``movie@16``."""
    return f"{group[0]}@{group[1]}" if group[1] else group[0]


# --- interpolation weights -----------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A layer of a tower; layers of different towers have nothing to do with each other."""

    tower: str
    number: int


Weights = dict[Group, dict[Layer, dict[str, float]]]
"""Target → layer → member (a source task, or :data:`OWN`) → weight, averaged over sites and seeds."""


def read_weights(store: Store, manifests: Manifests) -> Weights:
    """Return the learned weights; a seed whose neighbours do not include a member counts as 0 for it."""
    seeds: dict[Group, list[dict[Layer, dict[str, float]]]] = defaultdict(list)
    for artifact, manifest in manifests.items():
        family, _, name = artifact.partition("/")
        if family == "interpolations" and "weights.parquet" in manifest["files"]:
            task, shots, _ = split_slice(name)
            rows = store.table(artifact, "weights.parquet").to_pylist()
            seeds[task, shots].append(_by_layer(rows, name))
    return {group: _average(found) for group, found in sorted(seeds.items(), key=lambda item: group_order(item[0]))}


def _by_layer(rows: list[dict[str, Any]], target: str) -> dict[Layer, dict[str, float]]:
    """Average one target's weights over the sites of each layer; several sources of one task count together.

    Rows of older studies do not say their tower and layer: theirs count as one layer.
    """
    sites: dict[tuple[Layer, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        member = OWN if row["member"] == target else split_slice(row["member"])[0]
        layer = Layer(str(row.get("tower") or ""), int(row.get("layer") or 0))
        sites[layer, row["site"]][member] += float(row["weight"])
    layers: dict[Layer, list[dict[str, float]]] = defaultdict(list)
    for (layer, _), members in sites.items():
        layers[layer].append(members)
    return {layer: {m: float(np.mean([one[m] for one in found])) for m in found[0]} for layer, found in layers.items()}


def _average(found: list[dict[Layer, dict[str, float]]]) -> dict[Layer, dict[str, float]]:
    """Average over seeds, absent members as 0; layers come tower by tower, first to last."""
    result = {}
    for layer in sorted({layer for one in found for layer in one}):
        present = [one[layer] for one in found if layer in one]
        members = sorted({member for one in present for member in one})
        result[layer] = {m: float(np.mean([one.get(m, 0.0) for one in present])) for m in members}
    return result


def mean_weights(layers: dict[Layer, dict[str, float]]) -> dict[str, float]:
    """Average one target's weights over its layers."""
    members = {member for one in layers.values() for member in one}
    return {m: float(np.mean([one.get(m, 0.0) for one in layers.values()])) for m in sorted(members)}


# --- sweeps and curves ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """Where one trial of a target's sweep ended."""

    group: Group
    seed: int
    name: str
    top_k: int
    temperature: float
    own: str
    rate: float
    validation: float
    accuracy: float
    seconds: float
    finished: bool
    chosen: bool


def read_trials(store: Store, manifests: Manifests) -> list[Trial]:
    """Return the last row of every trial of every sweep."""
    trials = []
    for artifact in manifests:
        if re.fullmatch(r"sweeps/[^/]+\.parquet", artifact):  # trials that still run lie deeper
            task, shots, seed = split_slice(artifact.removeprefix("sweeps/").removesuffix(".parquet"))
            last: dict[str, dict[str, Any]] = {}
            for row in sorted(store.table(artifact).to_pylist(), key=lambda row: row["step"]):
                last[str(row["trial"])] = row
            trials += [_trial((task, shots), seed, row) for row in last.values()]
    return sorted(trials, key=lambda trial: (group_order(trial.group), trial.seed, trial.name))


def _trial(group: Group, seed: int, row: dict[str, Any]) -> Trial:
    return Trial(
        group,
        seed,
        str(row["trial"]),
        int(row["top_k"]),
        temperature=_number(row.get("temperature")),
        own=str(row.get("own") or TRAINED),
        rate=_number(row.get("rate", 1.0)),
        validation=_number(row.get("validation")),
        accuracy=_number(row.get("accuracy")),
        seconds=_number(row.get("seconds")),
        finished=row.get("state") == "finished",
        chosen=bool(row.get("chosen")),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Curve:
    """How one training went; arrays of equal length, ``validation`` NaN where it was not measured."""

    group: Group
    seed: int
    steps: NDArray[np.float64]
    loss: NDArray[np.float64]
    validation: NDArray[np.float64]


def read_curves(store: Store, manifests: Manifests, family: str) -> list[Curve]:
    """Return the training curves of ``experts`` or ``interpolations``."""
    curves = []
    for artifact, manifest in manifests.items():
        if artifact.startswith(f"{family}/") and "curve.parquet" in manifest["files"]:
            task, shots, seed = split_slice(artifact.removeprefix(f"{family}/"))
            columns = store.table(artifact, "curve.parquet").to_pydict()
            steps, loss, validation = (_column(columns, name) for name in ("step", "loss", "validation"))
            if len(steps):
                curves.append(Curve((task, shots), seed, steps, loss, validation))
    return sorted(curves, key=lambda curve: (group_order(curve.group), curve.seed))


def _column(columns: dict[str, list[Any]], name: str) -> NDArray[np.float64]:
    """Return a column as floats; NaN for nulls and, at the length of ``step``, for a column that is not there."""
    values: Iterable[Any] = columns.get(name) or [None] * len(columns["step"])
    return np.array([_number(value) for value in values], dtype=np.float64)


def settings_text(store: Store) -> str:
    """Return ``study.yaml`` as it stands; empty where there is none."""
    try:
        return store.text("study.yaml")
    except PituneError:
        return ""


def wanted(settings: str) -> Callable[[str], bool]:
    """Return what says whether an artifact belongs to the study as ``settings``, a ``study.yaml``, has it.

    An artifact belongs to the slice, or to the bare task, that its path names second; one that names neither belongs to
    the study. What targets share belongs to another slice of their task: the expert of all its data, its predictions.
    A pair belongs to its target and its source; the targets of the transfer matrix have pairs, and what sources have.
    """
    study = yaml.safe_load(settings) or {}
    if "targets" not in study:
        return lambda artifact: True
    matrix, sources = study.get("transfer") or {}, set(study["sources"])
    targets, measured = set(study["targets"]), set(matrix.get("targets", ()))
    named = targets | measured | sources
    tasks = {split_slice(target)[0] for target in targets}  # whose full slices are ceilings
    told = {split_slice(name)[0] for name in named}

    def is_wanted(artifact: str) -> bool:
        family, *rest = artifact.split("/")
        owner = rest[0].removesuffix(".parquet") if rest else ""
        if family == "tasks":
            return owner in told
        if "@" not in owner:
            return (family not in OF_TARGETS or owner in tasks) and (artifact != TRANSFER or bool(matrix))
        task, shots, _ = split_slice(owner)
        if PAIRS in (family, *rest):
            return owner in targets | measured and rest[-1].removesuffix(".parquet") in sources | {COMMON}
        if owner in targets or (task in tasks and shots == "full" and family in (*OF_SLICES, "predictions")):
            return True
        return family in OF_SLICES and owner in named

    return is_wanted
