"""The figures on results, weights, sweeps and training: plain values in, one SVG element out (or empty text).

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
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from pitune.report.contents import (
    OWN,
    TRAINED,
    Curve,
    Group,
    Trial,
    Weights,
    group_order,
    mean_weights,
    shots_order,
)
from pitune.report.drawing import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    OTHERS,
    PALETTE,
    PAPER,
    figure,
    finish,
    panels,
    short,
    short_group,
    styled,
    svg,
    task_colours,
)
from pitune.report.tables import Score, Target

COLUMNS = 4
"""Panels side by side in small multiples."""
WIDTH = 2.57
"""Inches of such a panel: four fill the page's column."""
LETTER = 0.0085
"""About the width of a letter in a bar of length 1."""
GRID = 8
"""So many temperatures are drawn as a grid; more, on a scale."""
SHAPES = {TRAINED: ("o", 6.5), "fresh": ("D", 5.2)}
"""The mark and its size of a trial that began with such an own expert."""


@styled()
def gains(targets: list[Target]) -> str:
    """Draw, per task and shots, where the single expert, the interpolated one and the full-data one stand."""
    shown = [target for target in targets if "single" in target.scores and "pi" in target.scores]
    if not shown:
        return ""
    shots = sorted({target.shots for target in shown}, key=shots_order)
    tasks = sorted({target.task for target in shown}, reverse=True)
    drawn = figure(10.3, 0.33 * len(tasks) + 1.25)
    rows = drawn.subplots(1, len(shots), squeeze=False, sharex=True, sharey=True)[0]
    for axes, count in zip(rows, shots, strict=True):
        for target in (target for target in shown if target.shots == count):
            _gain(axes, tasks.index(target.task), target.scores)
        finish(axes, _shots(count), "% on the test split")
        axes.xaxis.set_major_locator(MaxNLocator(6 if len(shots) < 3 else 3, steps=[1, 2, 5, 10]))
        axes.set_yticks(range(len(tasks)), [short(task) for task in tasks])
        axes.set_ylim(-0.6, len(tasks) - 0.4)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
    rows[0].set_xlim(right=min(rows[0].get_xlim()[1], 100.8))  # no score is higher; a dot at 100 stays whole
    _legend(drawn, [_dot("single", MUTED), _dot("pi", ACCENT), _dot("full data", PAPER, INK)])
    return svg(drawn, "Scores of the single, the interpolated and the full-data expert for each target")


def _gain(axes: Axes, y: float, scores: dict[str, Score]) -> None:
    """Draw one row: a line from single to full, a thick one from single to pi, dots with spreads."""
    single, pi = 100 * scores["single"].mean, 100 * scores["pi"].mean
    if "full" in scores:
        full = 100 * scores["full"].mean
        axes.plot([single, full], [y, y], color=LINE, linewidth=2, zorder=1)
        axes.plot([full], [y], "o", markerfacecolor=PAPER, markeredgecolor=INK, markersize=7, zorder=3)
    axes.plot([single, pi], [y, y], color=ACCENT, linewidth=4, alpha=0.45, zorder=2, solid_capstyle="butt")
    for value, colour, shift, name in ((single, MUTED, -0.24, "single"), (pi, ACCENT, 0.24, "pi")):
        axes.plot([value], [y], "o", color=colour, markersize=7, zorder=4)
        if not math.isnan(scores[name].std):
            spread = 100 * scores[name].std
            axes.plot([value - spread, value + spread], [y + shift] * 2, color=colour, linewidth=1.3, alpha=0.8)


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
    drawn, rows = panels(len(groups), COLUMNS, WIDTH, 1.55, sharey=True)
    colours = task_colours(tasks)
    for axes, group in zip(rows, groups, strict=True):
        layers = found[group]
        total = mean_weights(layers)
        base = np.zeros(len(layers))
        for member in sorted(total, key=lambda name: (name != OWN, -total[name])):
            parts = np.array([one.get(member, 0.0) for one in layers.values()])
            axes.bar(range(len(layers)), parts, 0.9, base, color=_member_colour(member, colours), linewidth=0)
            base += parts
        finish(axes, short_group(group))
        step = -(-len(layers) // 12)
        axes.set_xticks(range(0, len(layers), step), list(layers)[::step])
        axes.set_yticks([])
        axes.set_ylim(0, 1)
        axes.spines[:].set_visible(False)
    drawn.supxlabel("layer", fontsize=9)
    _members_legend(drawn, found, colours)
    return svg(drawn, "Learned interpolation weights of every target, layer by layer")


def _member_colour(member: str, colours: dict[str, str]) -> str:
    return INK if member == OWN else colours.get(member, OTHERS)


def _members_legend(drawn: Figure, found: Weights, colours: dict[str, str]) -> None:
    """Put the members' names above a figure of weights."""
    present = {member for layers in found.values() for one in layers.values() for member in one}
    named = [task for task, colour in colours.items() if task in present and colour != OTHERS]
    keys = [Patch(color=INK, label=OWN)] if OWN in present else []
    keys += [Patch(color=colours[task], label=_legible(task)) for task in named]
    if any(colours.get(member, OTHERS) == OTHERS for member in present - {OWN}):
        keys.append(Patch(color=OTHERS, label="others"))
    _legend(drawn, keys)


@styled()
def sweeps(trials: list[Trial]) -> str:
    """Draw each target's trials, temperature across and top-k up; deep is a low loss, a ring is the chosen.

    Trials that differ in their own expert alone lie above each other, each kind with a mark of its own.
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
    lane = 0.7 * gap / len(owns)
    lift = {own: lane * (number - (len(owns) - 1) / 2) for number, own in enumerate(owns)}
    grid = len(values) <= GRID
    height = 0.75 + (0.3 if len(owns) == 1 else 0.45) * max(2, min(len(ks), 6))
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
    kinds = [] if owns == [TRAINED] else [_own(own) for own in reversed(owns)]
    dots = [
        _dot(label, ACCENT, alpha=depth) for label, depth in (("lowest loss", 1.0), ("middle", 0.6), ("highest", 0.25))
    ]
    _legend(drawn, [*dots, early, ring, *kinds])
    return svg(drawn, "Trials of the sweep of every target: validation loss by temperature, top-k and own expert")


def _own(own: str) -> Line2D:
    """Return the legend's mark for an own expert."""
    marker, size = SHAPES.get(own, ("^", 6))
    label = f"own: {_legible(own)}"
    return Line2D(
        [], [], marker=marker, linestyle="", markersize=size, markerfacecolor=PAPER, markeredgecolor=ACCENT, label=label
    )


def _sweep(
    axes: Axes, trials: list[Trial], across: dict[float, float], lift: dict[str, float], lane: float | None
) -> None:
    """Draw the trials of one panel, coloured within each seed; seeds lie side by side or, in a ``lane``, above.

    ``across`` gives a temperature its place, ``lift`` an own expert its distance from top-k.
    """
    seeds = sorted({trial.seed for trial in trials})
    for number, seed in enumerate(seeds):
        some = [trial for trial in trials if trial.seed == seed]
        low, high = min(t.validation for t in some), max(t.validation for t in some)
        shift = min(0.24, 0.7 / len(seeds)) * (number - (len(seeds) - 1) / 2)
        for trial in sorted(some, key=lambda one: one.chosen):
            depth = 0.25 + 0.75 * (high - trial.validation) / (high - low) if high > low else 1.0
            x, y = across[trial.temperature], trial.top_k + lift[trial.own]
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
    _legend(drawn, [Line2D([], [], color=colours[count], label=_shots(count)) for count in shots])
    return svg(drawn, label)


def _shots(count: str) -> str:
    return "full data" if count == "full" else f"{count} shot{'' if count == '1' else 's'}"


def _dot(label: str, colour: str, edge: str = "none", alpha: float = 1.0) -> Line2D:
    dot = Line2D([], [], marker="o", linestyle="", markersize=7, markeredgecolor=edge, label=label)
    dot.set(markerfacecolor=colour, alpha=alpha)
    return dot


def _legible(name: str) -> str:
    """Return a name as a legend takes it: matplotlib leaves out those that begin with an underscore."""
    return short(name).lstrip("_") or "(unnamed)"


def _legend_width(keys: list[Line2D] | list[Patch], columns: int) -> float:
    """Return about how many inches a legend takes that is filled column by column."""
    lengths = np.array_split([len(str(key.get_label())) for key in keys], columns)
    return float(sum(0.45 + 0.062 * length.max() for length in lengths))


def _legend(drawn: Figure, keys: list[Line2D] | list[Patch]) -> None:
    """Put a legend above a figure, in as many columns as fit."""
    columns = min(7, len(keys))
    while columns > 1 and _legend_width(keys, columns) > drawn.get_figwidth():
        columns -= 1
    drawn.set_figheight(drawn.get_figheight() + 0.19 * (-(-len(keys) // columns) - 1))
    drawn.legend(handles=keys, loc="outside upper left", ncols=columns, fontsize=9, handlelength=1.1, columnspacing=1.3)
