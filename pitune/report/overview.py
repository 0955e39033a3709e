"""The overview: a row for each method, how the interpolated expert compares with it, and what it cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from pitune.methods import METHODS, Method
from pitune.report.differences import Difference
from pitune.report.drawing import shots_title
from pitune.report.scores import Average, average, methods_of, same_shots
from pitune.report.tables import Cell, average_cells, shots_of
from pitune.store import Store

RANKED, CONTROLS, OTHERS = (
    "seeing the same shots, the best first",
    "controls: the same, with experts that should not help",
    "seeing nothing, or all the data",
)
"""The overview's groups; methods are ranked within the first alone."""


@dataclass(frozen=True)
class MethodCost:
    """What a method cost for a slice, the mean over slices; ``trials`` and ``steps`` are None in older studies."""

    seconds: float
    trials: float | None
    steps: float | None


@dataclass(frozen=True)
class OverviewRow:
    """A method in the overview.

    Attributes:
        method: whose row it is.
        means: its mean over all targets, then over those of each shot count where there are several.
        lead: what the interpolated expert has over it; None for methods that are not compared with it.
        cost: what it cost.
    """

    method: Method
    means: list[Cell]
    lead: Difference | None
    cost: MethodCost


@dataclass(frozen=True)
class Overview:
    """The names of the columns of means, the rows in titled groups, and whether trials and steps are known."""

    columns: list[str]
    groups: list[tuple[str, list[OverviewRow]]]
    has_budget: bool

    @property
    def rivals(self) -> list[OverviewRow]:
        """The rows that the interpolated expert is compared with, in their order."""
        return [row for _, rows in self.groups for row in rows if row.lead is not None]


def read_costs(store: Store) -> dict[str, MethodCost]:
    """Return what each method cost for a slice, by ``results.parquet``; empty where there are no results yet.

    Each slice counts as if it had paid alone for what several share.
    """
    if store.manifest("results.parquet") is None:
        return {}
    slices: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in store.table("results.parquet").to_pylist():
        slices[row["method"]].setdefault(f"{row['task']}@{row['shots']}#{row['seed']}", row)
    return {method: _cost(list(rows.values())) for method, rows in slices.items()}


def _cost(rows: list[dict[str, Any]]) -> MethodCost:
    def mean(column: str) -> float | None:
        found = [float(row[column]) for row in rows if row.get(column) is not None]
        return statistics.fmean(found) if found else None

    return MethodCost(mean("seconds") or 0.0, mean("trials"), mean("steps"))


def overview(total: Average, costs: dict[str, MethodCost]) -> Overview:
    """Return the overview of the targets that have every method; without rows where there are none."""
    shots = shots_of(total.targets)
    parts = {"mean": total}
    if len(shots) > 1:
        parts |= {shots_title(count): average([one for one in total.targets if one.shots == count]) for count in shots}
    methods = sorted(methods_of(total.targets), key=lambda name: -total.means.get(name, -1.0))  # without a mean last
    cells = {name: average_cells(part, methods) for name, part in parts.items()}
    groups: dict[str, list[OverviewRow]] = {RANKED: [], CONTROLS: [], OTHERS: []}
    for place, name in enumerate(methods):
        means = [found[place] for found in cells.values()]
        row = OverviewRow(METHODS[name], means, total.leads.get(name), costs[name])
        groups[RANKED if name in same_shots() else CONTROLS if METHODS[name].control else OTHERS].append(row)
    has_budget = any(cost.trials is not None for cost in costs.values())
    return Overview(list(parts), [(title, rows) for title, rows in groups.items() if rows], has_budget)
