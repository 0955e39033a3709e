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
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pitune.errors import PituneError
from pitune.store import Store

OWN = "own expert"
"""How a target's own expert is called among the members of its interpolation."""
TRAINED = "trained"
"""The own expert that a trial began with where its table does not say."""
WHOLE = "all layers"
"""The layer of an injection site that names none (global weights)."""

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


# --- similarity ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """One row of ``graph.parquet``: a source as seen from one target slice."""

    source: str
    target: Group
    seed: int
    similarity: float
    rank: int


@dataclass(frozen=True)
class Similarity:
    """Similarities averaged over seeds.

    Attributes:
        sources: tasks, similar ones next to each other.
        columns: targets in the order of their tasks.
        values: (sources, columns); NaN where there is none.
        same: (sources, columns); whether both are the same task.
    """

    sources: list[str]
    columns: list[Group]
    values: NDArray[np.float64]
    same: NDArray[np.bool_]


def read_edges(store: Store, manifests: Manifests) -> list[Edge]:
    """Return the rows of the task graph."""
    if "graph.parquet" not in manifests:
        return []
    edges = []
    for row in store.table("graph.parquet").to_pylist():
        task, shots, seed = split_slice(row["target"])
        source = split_slice(row["source"])[0]
        edges.append(Edge(source, (task, shots), seed, float(row["similarity"]), int(row["rank"])))
    return edges


def similarity(edges: list[Edge], columns: list[Group]) -> Similarity:
    """Average the similarities to ``columns`` over seeds."""
    cells: dict[tuple[str, Group], list[float]] = defaultdict(list)
    for edge in edges:
        if edge.target in columns and math.isfinite(edge.similarity):
            cells[edge.source, edge.target].append(edge.similarity)
    tasks = chain_order(edges)
    sources = [task for task in tasks if any(source == task for source, _ in cells)]
    place = {task: i for i, task in enumerate(tasks)}
    ordered = sorted(columns, key=lambda group: (place.get(group[0], len(place)), shots_order(group[1])))
    values = np.array([[np.mean(cells.get((s, c), [np.nan])) for c in ordered] for s in sources], dtype=np.float64)
    same = np.array([[s == c[0] for c in ordered] for s in sources], dtype=np.bool_)
    shape = (len(sources), len(ordered))
    return Similarity(sources, ordered, values.reshape(shape), same.reshape(shape))


def graph_columns(edges: list[Edge], full: bool) -> list[Group]:
    """Return the groups of target slices, few-shot or ``full``; the other kind where there is no such one."""
    groups = {edge.target for edge in edges}
    wanted = [group for group in groups if (group[1] == "full") == full]
    return sorted(wanted or groups, key=group_order)


def task_similarity(edges: list[Edge]) -> dict[tuple[str, str], float]:
    """Return the similarity of each pair of tasks (in order of name), from full-data slices where there are any."""
    columns = set(graph_columns(edges, full=True))
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for edge in edges:
        if edge.target in columns and edge.source != edge.target[0] and math.isfinite(edge.similarity):
            first, second = sorted((edge.source, edge.target[0]))
            pairs[first, second].append(edge.similarity)
    return {pair: float(np.mean(values)) for pair, values in sorted(pairs.items())}


def chain_order(edges: list[Edge]) -> list[str]:
    """Order tasks so that similar ones are neighbours: begin with the closest pair, go on at the nearer end."""
    pairs = task_similarity(edges)
    rest = sorted({edge.source for edge in edges} | {edge.target[0] for edge in edges})
    if not pairs:
        return rest

    def near(a: str, b: str) -> float:
        return pairs.get((min(a, b), max(a, b)), -math.inf)

    closest: tuple[str, str] = max(pairs, key=lambda pair: pairs[pair])
    chain = [*closest]
    rest = [task for task in rest if task not in chain]
    while rest:
        left = max(rest, key=lambda task: near(task, chain[0]))
        right = max(rest, key=lambda task: near(task, chain[-1]))
        if near(left, chain[0]) > near(right, chain[-1]):
            chain.insert(0, left)
            rest.remove(left)
        else:
            chain.append(right)
            rest.remove(right)
    return chain


# --- interpolation weights -----------------------------------------------------------------------------------------

Weights = dict[Group, dict[str, dict[str, float]]]
"""Target → layer → member (a source task, or :data:`OWN`) → weight, averaged over sites and seeds."""


def layer_of(site: str) -> str:
    """Return the first number in a site's dotted name as its layer (``encoder.layer.3.attention`` → ``3``)."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", site)
    return found.group(1) if found else WHOLE


def read_weights(store: Store, manifests: Manifests) -> Weights:
    """Return the learned weights; a seed whose neighbours do not include a member counts as 0 for it."""
    seeds: dict[Group, list[dict[str, dict[str, float]]]] = defaultdict(list)
    for artifact, manifest in manifests.items():
        family, _, name = artifact.partition("/")
        if family == "interpolations" and "weights.parquet" in manifest["files"]:
            task, shots, _ = split_slice(name)
            rows = store.table(artifact, "weights.parquet").to_pylist()
            seeds[task, shots].append(_by_layer(rows, name))
    return {group: _average(found) for group, found in sorted(seeds.items(), key=lambda item: group_order(item[0]))}


def _by_layer(rows: list[dict[str, Any]], target: str) -> dict[str, dict[str, float]]:
    """Average one target's weights over the sites of each layer; several sources of one task count together."""
    sites: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        member = OWN if row["member"] == target else split_slice(row["member"])[0]
        sites[row["site"]][member] += float(row["weight"])
    layers: dict[str, list[dict[str, float]]] = defaultdict(list)
    for site, members in sites.items():
        layers[layer_of(site)].append(members)
    return {layer: {m: float(np.mean([one[m] for one in found])) for m in found[0]} for layer, found in layers.items()}


def _average(found: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Average over seeds, absent members as 0."""
    layers = sorted({layer for one in found for layer in one}, key=shots_order)
    result = {}
    for layer in layers:
        present = [one[layer] for one in found if layer in one]
        members = sorted({member for one in present for member in one})
        result[layer] = {m: float(np.mean([one.get(m, 0.0) for one in present])) for m in members}
    return result


def mean_weights(layers: dict[str, dict[str, float]]) -> dict[str, float]:
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
    """Return what says whether an artifact belongs to the study as ``settings``, a ``study.yaml``, has it."""
    study = yaml.safe_load(settings) or {}
    if "targets" not in study:
        return lambda artifact: True
    targets = set(study["targets"])
    named = targets | set(study["sources"])
    tasks = {split_slice(target)[0] for target in targets}  # whose full slices are ceilings

    def is_wanted(artifact: str) -> bool:
        family, *rest = artifact.split("/")
        name = rest[0].removesuffix(".parquet") if rest else ""
        if "@" not in name or name in targets:
            return True
        of_task = split_slice(name)[0] in tasks and split_slice(name)[1] == "full"
        return family in ("experts", "embeddings", "slices") and (name in named or of_task)

    return is_wanted
