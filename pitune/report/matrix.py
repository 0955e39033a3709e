"""The transfer matrix as text: what every source gains on every target."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from pitune.report.contents import Group, group_name, group_order, split_slice
from pitune.report.numbers import percent, points, span
from pitune.report.text import table
from pitune.results import TRANSFER
from pitune.store import Store


def matrix_markdown(store: Store) -> str:
    """Return the transfer matrix as Markdown: a row per source, a column per task and shots, gains as means over seeds.

    The last column is the mean over targets of other tasks, the last row what the single experts score.
    """
    if not store.manifest(TRANSFER):
        return "No transfer matrix yet.\n"
    gains: dict[str, dict[Group, list[float]]] = defaultdict(lambda: defaultdict(list))
    singles: dict[Group, dict[int, float]] = defaultdict(dict)
    for row in store.table(TRANSFER).to_pylist():
        group = row["target"], row["shots"]
        gains[row["source"]][group].append(row["gain"])
        singles[group][row["seed"]] = row["single"]
    groups = sorted(singles, key=group_order)
    head = ["start from", *map(group_name, groups), "mean of other tasks"]
    lines = []
    for source, found in gains.items():
        task = split_slice(source)[0]
        means = {group: statistics.fmean(found[group]) for group in groups}
        cells = [points(mean) if group[0] != task else f"*{points(mean)}*" for group, mean in means.items()]
        lines.append([source, *cells, points(_mean(m for group, m in means.items() if group[0] != task))])
    scores = [_mean(singles[group].values()) for group in groups]
    lines.append(["*single expert scores*", *map(percent, scores), ""])
    seeds = sorted({len(found) for found in singles.values()})
    over = span(seeds, "seed")
    note = (
        f"Points gained over the target's single expert on the test split, mean over {over}; italics: of its own task."
    )
    return table(head, lines) + f"\n\n{note}\n"


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None
