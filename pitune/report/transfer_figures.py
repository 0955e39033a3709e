"""The figures on transfer: the interpolated expert against every rival; what was measured, and what was predicted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pitune.report.drawing import (
    ACCENT,
    DOWN,
    HEAT,
    MUTED,
    PAPER,
    UP,
    figure,
    name_rows,
    note_row,
    styled,
    svg,
)
from pitune.report.numbers import points
from pitune.report.overview import OverviewRow
from pitune.report.scores import OURS, title
from pitune.report.task_figures import ANNOTATED, bare, cells, name_cells
from pitune.report.transfer import Matrix

WIDTH = 5.0
"""Inches of a heatmap: two stand side by side in the page's column."""


@styled()
def rivals(rows: list[OverviewRow]) -> str:
    """Draw what the interpolated expert has over each rival: the mean and its interval; a control is hollow.

    Empty where no rival has an interval.
    """
    shown = [(row.method, row.lead) for row in rows if row.lead is not None]
    if not any(lead.has_interval for _, lead in shown):
        return ""  # the table has as much
    drawn = figure(10.3, 0.34 * len(shown) + 1.0)
    axes = drawn.subplots()
    name_rows(
        axes, [method.title for method, _ in shown], f"points that {title(OURS)} is ahead (left of the line: behind)"
    )
    for y, (method, lead) in enumerate(shown):
        colour = ACCENT if lead.clear > 0 else DOWN if lead.clear < 0 else MUTED
        if lead.has_interval:
            axes.plot([100 * lead.low, 100 * lead.high], [y, y], color=colour, linewidth=2, zorder=2)
        face = PAPER if method.control else colour
        axes.plot([100 * lead.mean], [y], "o", markerfacecolor=face, markeredgecolor=colour, markersize=8, zorder=3)
        note_row(axes, y, points(lead.mean))
    return svg(drawn, "What the interpolated expert has over every rival and control, with intervals")


@styled()
def measured(found: Matrix | None) -> str:
    """Draw what each source's expert brings each target over its single expert, in points; own tasks are hatched."""
    if found is None:
        return ""
    most = max((abs(value) for value in _others(found, found.gains)), default=0.0) or 1.0

    def shade(place: tuple[int, int]) -> tuple[str, float]:
        value = found.gains[place]
        return (UP if value >= 0 else DOWN), 0.05 + 0.85 * min(1.0, abs(value) / most)

    scale = f"strongest shade: {most:.1f} points"
    return _heatmap(found, found.gains, shade, lambda value: points(value / 100), scale, "Measured gain of every pair")


@styled()
def predicted(found: Matrix | None) -> str:
    """Draw the similarity of the same pairs, in the same order."""
    values = _others(found, found.similarities) if found is not None else []
    if found is None or not values:
        return ""
    low, high = min(values), max(values)

    def shade(place: tuple[int, int]) -> tuple[str, float]:
        return HEAT, 0.06 + 0.84 * float(found.similarities[place] - low) / (high - low or 1)

    scale = f"shades: {low:.2f} to {high:.2f}".replace("-", "−")
    return _heatmap(found, found.similarities, shade, bare, scale, "Predicted similarity of every pair")


def _others(found: Matrix, values: NDArray[np.float64]) -> list[float]:
    """Return the values of sources of other tasks."""
    return [float(value) for value in values[~found.same] if math.isfinite(value)]


def _heatmap(
    found: Matrix,
    values: NDArray[np.float64],
    shade: Callable[[tuple[int, int]], tuple[str, float]],
    form: Callable[[float], str],
    scale: str,
    label: str,
) -> str:
    rows, columns = values.shape
    narrow = columns > ANNOTATED or rows > ANNOTATED
    drawn = figure(WIDTH, (0.24 if narrow else 0.36) * rows + 1.5)
    axes = drawn.subplots()
    cells(axes, values, found.same, shade, form, 0 if narrow else 7.5 if columns <= 7 else 6)
    name_cells(axes, found.sources, found.columns, 18 if narrow else 12)
    axes.set_xlabel(f"target (mean over seeds); {scale}", fontsize=9)
    if narrow:
        axes.tick_params(labelsize=7)
        axes.tick_params(axis="x", labelrotation=90)
    return svg(drawn, label)
