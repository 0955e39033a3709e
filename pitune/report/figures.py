"""The figures on weights, sweeps and training: plain values in, one SVG element out (or empty text).

Seeds are averaged, or drawn on top of each other in one panel per task and shots, so that a study of many targets stays
readable.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from pitune.report.contents import (
    OWN,
    TRAINED,
    Curve,
    Group,
    Layer,
    Trial,
    Weights,
    group_order,
    mean_weights,
    shots_order,
)
from pitune.report.drawing import (
    ACCENT,
    INK,
    MUTED,
    OTHERS,
    PALETTE,
    PAPER,
    dot,
    figure,
    finish,
    legend,
    legible,
    panels,
    short,
    short_group,
    shots_title,
    styled,
    svg,
    task_colours,
)

COLUMNS = 4
"""Panels side by side in small multiples."""
WIDTH = 2.57
"""Inches of such a panel: four fill the page's column."""
CROWDED = 16
"""Panels of more layers are twice as wide."""
LETTER = 0.0085
"""About the width of a letter in a bar of length 1."""
GRID = 8
"""So many temperatures are drawn as a grid; more, on a scale."""
SHAPES = {TRAINED: ("o", 6.5), "fresh": ("D", 5.2)}
"""The sign and its size of a trial that began with such an own expert."""


@styled()
def weights(found: Weights, tasks: list[str]) -> str:
    """Draw each target's learned weights as a bar of its members' shares."""
    if not found:
        return ""
    groups = sorted(found, key=group_order)
    drawn = figure(10.3, 0.3 * len(groups) + 1.3)
    axes = drawn.subplots()
    colours = task_colours(tasks)
    for y, group in enumerate(groups):
        left = 0.0
        shares = mean_weights(found[group])
        for member in sorted(shares, key=lambda name: (name != OWN, -shares[name])):
            part = shares[member]
            axes.barh(y, part, 0.78, left, color=_member_colour(member, colours), edgecolor=PAPER, linewidth=1)
            number = f"{100 * part:.0f}"
            named = f"{'own' if member == OWN else short(member, 14)}  {number}"
            text = named if part > LETTER * (len(named) + 2) else number if part > 2.5 * LETTER * len(number) else ""
            colour = PAPER if member == OWN else "#101418"
            axes.text(left + part / 2, y, text, ha="center", va="center", fontsize=8, color=colour)
            left += part
    finish(axes, x="weight of each member's expert, % (mean over sites and seeds)")
    axes.set_yticks(range(len(groups)), [short_group(group) for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    _members_legend(drawn, found, colours)
    return svg(drawn, "Learned interpolation weights of every target, by member")


@styled()
def layer_weights(found: Weights, tasks: list[str]) -> str:
    """Draw each target's weights layer by layer; empty where no target has more than one layer."""
    groups = [group for group in sorted(found, key=group_order) if len(found[group]) > 1]
    if not groups:
        return ""
    towers = len({layer.tower for group in groups for layer in found[group]})
    times = 2 if max(len(found[group]) for group in groups) > CROWDED else 1
    drawn, rows = panels(len(groups), COLUMNS // times, WIDTH * times, 1.55, sharey=True)
    colours = task_colours(tasks)
    for axes, group in zip(rows, groups, strict=True):
        finish(axes, short_group(group))
        _layers(axes, found[group], colours, name_towers=towers > 1)
        axes.set_yticks([])
        axes.set_ylim(0, 1)
        axes.spines[:].set_visible(False)
    drawn.supxlabel("layer", fontsize=9)
    _members_legend(drawn, found, colours)
    return svg(drawn, "Learned interpolation weights of every target, layer by layer")


def _layers(axes: Axes, layers: dict[Layer, dict[str, float]], colours: dict[str, str], name_towers: bool) -> None:
    """Draw one target's columns, the layers of a tower side by side, a gap between towers."""
    order = sorted(layers)
    names = sorted({layer.tower for layer in order})
    places = np.array([place + names.index(layer.tower) for place, layer in enumerate(order)], dtype=np.float64)
    total = mean_weights(layers)
    base = np.zeros(len(order))
    for member in sorted(total, key=lambda name: (name != OWN, -total[name])):
        parts = np.array([layers[layer].get(member, 0.0) for layer in order])
        axes.bar(places, parts, 0.9, base, color=_member_colour(member, colours), linewidth=0)
        base += parts
    step = -(-len(order) // (20 if len(order) > CROWDED else 12))
    labelled = [(place, layer.number) for place, layer in zip(places, order, strict=True) if layer.number % step == 0]
    axes.set_xticks([place for place, _ in labelled], [str(number) for _, number in labelled])
    for name in names if name_towers else ():
        middle = float(np.mean([place for place, layer in zip(places, order, strict=True) if layer.tower == name]))
        axes.annotate(
            short(name, 12),
            (middle, 0),
            (0, -24),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=MUTED,
        )


def _member_colour(member: str, colours: dict[str, str]) -> str:
    return INK if member == OWN else colours.get(member, OTHERS)


def _members_legend(drawn: Figure, found: Weights, colours: dict[str, str]) -> None:
    """Put the members' names above a figure of weights."""
    present = {member for layers in found.values() for one in layers.values() for member in one}
    named = [task for task, colour in colours.items() if task in present and colour != OTHERS]
    keys = [Patch(color=INK, label=OWN)] if OWN in present else []
    keys += [Patch(color=colours[task], label=legible(task)) for task in named]
    if any(colours.get(member, OTHERS) == OTHERS for member in present - {OWN}):
        keys.append(Patch(color=OTHERS, label="others"))
    legend(drawn, keys)


@styled()
def sweeps(trials: list[Trial]) -> str:
    """Draw each target's trials, temperature across and top-k up; deep is a low loss, a ring is the chosen.

    Trials that differ in their own expert or learning rate alone lie above each other, a high rate above a low one;
    each kind of own expert has a sign of its own.
    """
    groups: dict[Group, list[Trial]] = defaultdict(list)
    for trial in trials:
        if math.isfinite(trial.validation) and math.isfinite(trial.temperature):
            groups[trial.group].append(trial)
    if not groups:
        return ""
    values = sorted({trial.temperature for some in groups.values() for trial in some})
    ks = sorted({trial.top_k for some in groups.values() for trial in some})
    owns = sorted({trial.own for some in groups.values() for trial in some})
    gap = min((b - a for a, b in itertools.pairwise(ks)), default=1)
    kinds = sorted({(trial.own, trial.rate) for some in groups.values() for trial in some})
    lane = 0.7 * gap / len(kinds)
    lift = {kind: lane * (number - (len(kinds) - 1) / 2) for number, kind in enumerate(kinds)}
    grid = len(values) <= GRID
    height = 0.75 + (0.15 + 0.15 * min(len(kinds), 3)) * max(2, min(len(ks), 6))
    drawn, rows = panels(len(groups), COLUMNS, WIDTH, height, sharex=True, sharey=True)
    for axes, group in zip(rows, sorted(groups, key=group_order), strict=True):
        across = {value: place if grid else value for place, value in enumerate(values)}
        _sweep(axes, groups[group], across, lift, None if grid else lane)
        finish(axes, short_group(group))
        axes.set_yticks(ks)
        axes.set_ylim(ks[0] - 0.6 * gap, ks[-1] + 0.6 * gap)
        if grid:
            axes.set_xticks(range(len(values)), [f"{value:.3g}" for value in values])
            axes.set_xlim(-0.6, len(values) - 0.4)
        elif values[0] > 0 and values[-1] > 5 * values[0]:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
    drawn.supxlabel("temperature", fontsize=9)
    drawn.supylabel("top-k", fontsize=9)
    ring = Line2D(
        [], [], marker="o", linestyle="", markerfacecolor="none", markeredgecolor=INK, markersize=10, label="chosen"
    )
    early = Line2D([], [], marker="o", linestyle="", color=ACCENT, markersize=3.9, markeredgewidth=0)
    early.set_label("stopped early")
    signs = [] if owns == [TRAINED] else [_own(own) for own in reversed(owns)]
    dots = [
        dot(label, ACCENT, alpha=depth) for label, depth in (("lowest loss", 1.0), ("middle", 0.6), ("highest", 0.25))
    ]
    legend(drawn, [*dots, early, ring, *signs])
    return svg(drawn, "Trials of the sweep of every target: validation loss by temperature, top-k, own expert and rate")


def _own(own: str) -> Line2D:
    """Return the legend's sign for an own expert."""
    marker, size = SHAPES.get(own, ("^", 6))
    label = f"own: {legible(own)}"
    return Line2D(
        [], [], marker=marker, linestyle="", markersize=size, markerfacecolor=PAPER, markeredgecolor=ACCENT, label=label
    )


def _sweep(
    axes: Axes,
    trials: list[Trial],
    across: dict[float, float],
    lift: dict[tuple[str, float], float],
    lane: float | None,
) -> None:
    """Draw the trials of one panel, coloured within each seed; seeds lie side by side or, in a ``lane``, above.

    ``across`` gives a temperature its place, ``lift`` an own expert and a rate their distance from top-k.
    """
    seeds = sorted({trial.seed for trial in trials})
    for number, seed in enumerate(seeds):
        some = [trial for trial in trials if trial.seed == seed]
        low, high = min(t.validation for t in some), max(t.validation for t in some)
        shift = min(0.24, 0.7 / len(seeds)) * (number - (len(seeds) - 1) / 2)
        for trial in sorted(some, key=lambda one: one.chosen):
            depth = 0.25 + 0.75 * (high - trial.validation) / (high - low) if high > low else 1.0
            x, y = across[trial.temperature], trial.top_k + lift[trial.own, trial.rate]
            x, y = (x + shift, y) if lane is None else (x, y + shift * lane)
            marker, size = SHAPES.get(trial.own, ("^", 6))
            size *= 1 if trial.finished else 0.6
            axes.plot([x], [y], marker, color=ACCENT, alpha=depth, markersize=size, markeredgewidth=0)
            if trial.chosen:
                axes.plot(
                    [x], [y], "o", markerfacecolor="none", markeredgecolor=INK, markersize=11, markeredgewidth=1.4
                )


@styled()
def curves(found: list[Curve], value: str, label: str) -> str:
    """Draw ``loss`` or ``validation`` over training, a panel per task, a colour per shots, a thin line per seed."""
    parts = [(curve, getattr(curve, value)) for curve in found]
    parts = [(curve, values) for curve, values in parts if np.isfinite(values).any()]
    if not parts:
        return ""
    tasks = sorted({curve.group[0] for curve, _ in parts})
    shots = sorted({curve.group[1] for curve, _ in parts}, key=shots_order)
    colours = {count: INK if count == "full" else PALETTE[i % len(PALETTE)] for i, count in enumerate(shots)}
    drawn, rows = panels(len(tasks), COLUMNS, WIDTH, 1.75, sharex=True, sharey=len(tasks) > 1)
    for curve, values in parts:
        there = np.isfinite(values)
        done = 100 * curve.steps[there] / (curve.steps[-1] or 1)
        marker = "o" if there.sum() == 1 else "none"
        rows[tasks.index(curve.group[0])].plot(
            done, values[there], color=colours[curve.group[1]], linewidth=1.1, alpha=0.75, marker=marker, ms=3
        )
    for axes, task in zip(rows, tasks, strict=True):
        finish(axes, short(task, 30))
        axes.set_xticks([0, 50, 100])
    drawn.supxlabel("% of the training steps", fontsize=9)
    drawn.supylabel("loss" if value == "loss" else "validation loss", fontsize=9)
    legend(drawn, [Line2D([], [], color=colours[count], label=shots_title(count)) for count in shots])
    return svg(drawn, label)
