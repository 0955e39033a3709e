"""The figures on scores: what is gained on every target, and how the methods compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pitune.methods import METHODS
from pitune.report.drawing import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    PAPER,
    dot,
    figure,
    finish,
    legend,
    name_rows,
    note_row,
    short,
    shots_title,
    styled,
    svg,
)
from pitune.report.numbers import points
from pitune.report.scores import (
    BASELINE,
    OURS,
    Average,
    Scores,
    TargetScores,
    by_seed,
    ceiling,
    same_shots,
    title,
)
from pitune.report.tables import shots_of

CROWDED = 2.0
"""Up to so many times the room of the others, a method that sees nothing is drawn whole; farther out, it is cut off."""


@styled()
def gains(targets: Sequence[TargetScores]) -> str:
    """Draw, per task and shots, where the baseline, the interpolated expert and the ceiling stand."""
    shown = [target for target in targets if BASELINE in target.scores and OURS in target.scores]
    if not shown:
        return ""
    shots = shots_of(shown)
    tasks = sorted({target.task for target in shown}, reverse=True)
    drawn = figure(10.3, 0.33 * len(tasks) + 1.25)
    panels = drawn.subplots(1, len(shots), squeeze=False, sharex=True, sharey=True)[0]
    for axes, count in zip(panels, shots, strict=True):
        for target in (target for target in shown if target.shots == count):
            _gain(axes, tasks.index(target.task), target.scores)
        finish(axes, shots_title(count), "% on the test split")
        axes.xaxis.set_major_locator(MaxNLocator(6 if len(shots) < 3 else 3, steps=[1, 2, 5, 10]))
        axes.set_yticks(range(len(tasks)), [short(task) for task in tasks])
        axes.set_ylim(-0.6, len(tasks) - 0.4)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
    panels[0].set_xlim(right=min(panels[0].get_xlim()[1], 100.8))  # no score is higher; a dot at 100 stays whole
    above = [dot(title(ceiling()), PAPER, INK)] if any(ceiling() in target.scores for target in shown) else []
    legend(drawn, [dot(title(BASELINE), MUTED), dot(title(OURS), ACCENT), *above])
    return svg(drawn, "Scores of the single, the interpolated and the full-data expert for each target")


def _gain(axes: Axes, y: float, scores: Scores) -> None:
    """Draw one row: a line from baseline to ceiling, a thick one for what is gained, dots with spreads."""
    below, ours = 100 * scores[BASELINE].mean, 100 * scores[OURS].mean
    if ceiling() in scores:
        above = 100 * scores[ceiling()].mean
        axes.plot([below, above], [y, y], color=LINE, linewidth=2, zorder=1)
        axes.plot([above], [y], "o", markerfacecolor=PAPER, markeredgecolor=INK, markersize=7, zorder=3)
    axes.plot([below, ours], [y, y], color=ACCENT, linewidth=4, alpha=0.45, zorder=2, solid_capstyle="butt")
    for value, colour, shift, name in ((below, MUTED, -0.24, BASELINE), (ours, ACCENT, 0.24, OURS)):
        axes.plot([value], [y], "o", color=colour, markersize=7, zorder=4)
        if not math.isnan(scores[name].std):
            spread = 100 * scores[name].std
            axes.plot([value - spread, value + spread], [y + shift] * 2, color=colour, linewidth=1.3, alpha=0.8)


@styled()
def methods(total: Average) -> str:
    """Draw what every other method gains over the baseline: a small dot a target, a large one their mean."""
    gained = {
        name: [100 * (target.scores[name].mean - target.scores[BASELINE].mean) for target in total.targets]
        for name in total.methods
        if name != BASELINE and BASELINE in total.means
    }
    if not gained:
        return ""
    drawn = figure(10.3, 0.36 * len(gained) + 1.1)
    axes = drawn.subplots()
    name_rows(axes, [title(name) for name in gained], f"points over {title(BASELINE)}")
    low, high = _range(gained)
    for y, (name, values) in enumerate(gained.items()):
        seeds = by_seed(total.scores, name, BASELINE)
        _method(axes, y, name, values, math.nan if seeds is None else 100 * seeds.std)
        mean = statistics.fmean(values)
        sign = "\N{LEFTWARDS ARROW} " if mean < low else "\N{RIGHTWARDS ARROW} " if mean > high else ""
        note_row(axes, y, sign + points(mean / 100))
    axes.set_xlim(low, high)
    return svg(drawn, "What every method gains over the single expert, by target and in the mean")


def _range(gained: dict[str, list[float]]) -> tuple[float, float]:
    """Return the points to show: those of all methods, unless one that sees nothing would crowd out the others."""
    parts = [values for name, values in gained.items() if METHODS[name].sees != "nothing"]
    every = [value for values in gained.values() for value in values]
    near = [0.0, *(value for values in parts for value in values)]
    low, high = min(near), max(near)
    if not parts or max(every) - min(every) <= CROWDED * (high - low):
        low, high = min(low, *every), max(high, *every)
    around = 0.04 * (high - low) or 1.0
    return low - around, high + around


def _method(axes: Axes, y: float, name: str, values: Sequence[float], spread: float) -> None:
    """Draw one row: a method's targets, their mean, and its ``spread`` over seeds; hollow where it is not ranked."""
    colour, mean = ACCENT if name == OURS else MUTED, statistics.fmean(values)
    aside = 0.2 * np.cos(np.arange(len(values)) * 2.4)  # so that targets that score alike stay apart
    axes.plot(values, y + aside, "o", color=colour, markersize=3.6, alpha=0.55, markeredgewidth=0, zorder=2)
    if not math.isnan(spread):
        axes.plot([mean - spread, mean + spread], [y, y], color=colour, linewidth=1.6, zorder=3)
    face = colour if name in same_shots() else PAPER
    axes.plot([mean], [y], "o", markerfacecolor=face, markeredgecolor=colour, markersize=8.5, zorder=4)
