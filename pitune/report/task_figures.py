"""The figures that say which tasks are alike: the heatmap and the task graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pitune.report.contents import Group
from pitune.report.drawing import (
    HEAT,
    INK,
    LINE,
    MUTED,
    OTHERS,
    PALETTE,
    PAPER,
    figure,
    legend,
    legible,
    short,
    short_group,
    styled,
    svg,
)
from pitune.report.modalities import ordered
from pitune.report.numbers import points
from pitune.report.similarities import SimilarityTable

ANNOTATED = 12
"""Figures of up to so many tasks have their values written in."""
DASHES = (0, (2.2, 1.4))
"""Of lines between modalities."""
Colour = tuple[float, float, float] | str
Sign = tuple[Colour, str, float]
"""How a task is drawn: colour, marker, size in points."""
SIGNS: list[Sign] = [(PALETTE[0], "o", 17), (PALETTE[1], "s", 15), (PALETTE[4], "D", 14), (PALETTE[2], "^", 17)]
"""Of the modalities, in the order of the page: colours that stay apart for the colour-blind, and a shape each."""


@styled()
def heatmap(found: SimilarityTable) -> str:
    """Draw similarities, sources down and targets across; the same task is hatched, it is never a neighbour."""
    rows, columns = found.values.shape
    others = found.values[~found.same & np.isfinite(found.values)]
    if not others.size:
        return ""
    low, high = float(others.min()), float(others.max())
    depth = 0.06 + 0.94 * (found.values - low) / (high - low or 1)
    wide = columns > ANNOTATED
    height = 0.42 if rows <= ANNOTATED else 0.3
    drawn = figure(10.3 if columns > 6 else 0.9 * columns + 3.4, height * rows + 1.9)
    axes, scale = drawn.subplots(1, 2, width_ratios=[40, 1])
    size = 0 if max(rows, columns) > 2 * ANNOTATED else 7 if wide else 9
    cells(axes, found.values, found.same, lambda place: (HEAT, depth[place]), bare, size)
    name_cells(axes, found.sources, found.columns)
    if columns > 2 * ANNOTATED:  # slanted names would run into each other
        axes.tick_params(axis="x", labelrotation=90, labelsize=min(9, 300 / columns))
    axes.set_xlabel("target (mean over seeds)", fontsize=9)
    _scale(scale, low, high)
    least = 900 if wide else 620  # for what is written in to be read
    return svg(drawn, "Heatmap of the similarity of every source task to every target", least)


def cells(
    axes: Axes,
    values: NDArray[np.float64],
    same: NDArray[np.bool_],
    shade: Callable[[tuple[int, int]], tuple[str, float]],
    form: Callable[[float], str],
    size: float,
) -> None:
    """Draw the cells of a heatmap, the same task hatched.

    Args:
        axes: where.
        values: (rows, columns); NaN where there is none.
        same: (rows, columns); whether both are of one task.
        shade: gives a cell, by its place, its colour and how much of it, 0 to 1.
        form: writes a value.
        size: of what is written in, in points; 0: nothing is.
    """
    for (row, column), value in np.ndenumerate(values):
        at = (column + 0.03, row + 0.03)
        if same[row, column]:
            axes.add_patch(Rectangle(at, 0.94, 0.94, fill=False, hatch="////", edgecolor=LINE, linewidth=0))
        elif math.isfinite(value):
            colour, amount = shade((row, column))
            axes.add_patch(Rectangle(at, 0.94, 0.94, facecolor=colour, alpha=amount, linewidth=0))
            if size:
                ink = PAPER if amount > 0.55 else INK
                axes.text(column + 0.5, row + 0.5, form(value), ha="center", va="center", fontsize=size, color=ink)


def name_cells(axes: Axes, sources: list[str], columns: list[Group], width: int = 20) -> None:
    """Write the names of a heatmap's rows and columns, and see that all of its cells show."""
    names = [short_group(column, width) for column in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(sources)) + 0.5, [short(source, width + 4) for source in sources])
    axes.xaxis.tick_top()
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(sources), 0)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("source", fontsize=9)


def bare(value: float) -> str:
    """Return ``.59``, ``-.02`` or ``1.00``."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"


def _scale(axes: Axes, low: float, high: float) -> None:
    """Draw what the heatmap's shades mean."""
    steps = 24
    for step in range(steps):
        depth = 0.06 + 0.94 * step / (steps - 1)
        axes.add_patch(Rectangle((0, step / steps), 1, 1 / steps, facecolor=HEAT, alpha=depth, linewidth=0))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([])
    axes.set_yticks([0, 0.5, 1], [f"{value:.2f}" for value in (low, (low + high) / 2, high)])
    axes.yaxis.tick_right()
    axes.tick_params(length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)


@styled()
def task_graph(
    pairs: dict[tuple[str, str], float],
    order: list[str],
    gain: dict[str, float],
    modality: Mapping[str, str],
    nearest: int = 2,
) -> str:
    """Draw tasks as nodes, joined to their ``nearest`` nearest.

    Where the tasks are of several modalities, a node's colour and shape is its modality, and lines that cross are
    dashed; else its colour is what pi gains there, where known.

    Args:
        pairs: the similarity of each pair of tasks, in order of name.
        order: the tasks, alike ones side by side.
        gain: pi − single in points, of the tasks that have it.
        modality: of each task that is known.
        nearest: how many others each task is joined to.
    """
    if not pairs:
        return ""
    graph = nx.Graph()
    graph.add_nodes_from(task for task in order if any(task in pair for pair in pairs))
    for task in graph.nodes:
        around = sorted((pair for pair in pairs if task in pair), key=lambda pair: -pairs[pair])
        graph.add_edges_from(around[:nearest])
    place = _ring(list(graph.nodes))
    drawn = figure(10.3, 4.6 if len(place) <= ANNOTATED else 7.0)
    axes = drawn.subplots()
    ends = sorted((min(edge), max(edge)) for edge in graph.edges)
    kinds = ordered(modality[task] for task in graph.nodes if task in modality)
    signs = {kind: SIGNS[number % len(SIGNS)] for number, kind in enumerate(kinds)} if len(kinds) > 1 else {}
    crossing = {edge for edge in ends if signs and modality.get(edge[0]) != modality.get(edge[1])}
    _join(axes, {edge: pairs[edge] for edge in ends}, crossing, place)
    if len(place) <= ANNOTATED:
        _write_edges(axes, {edge: pairs[edge] for edge in ends}, place)
    most = max([abs(value) for value in gain.values()], default=0.0) or 1.0
    for task in graph.nodes:
        plain = (_gain_colour(gain.get(task), most), "o", 17)
        _node(axes, task, place[task], gain, signs.get(modality.get(task, ""), plain))
    axes.set_xlim(-2.5, 2.5)
    axes.set_ylim(-1.2, 1.2)
    axes.set_axis_off()
    if signs:
        legend(drawn, _graph_legend(signs))
    return svg(drawn, "Graph of the tasks, joined to their nearest neighbours")


def _join(
    axes: Axes,
    values: dict[tuple[str, str], float],
    crossing: set[tuple[str, str]],
    place: dict[str, NDArray[np.float64]],
) -> None:
    """Draw the graph's lines, the thicker the more alike, ``crossing`` ones dashed."""
    low, high = min(values.values()), max(values.values())
    most = 6.0 if len(place) <= ANNOTATED else 4.0
    width = {edge: 1.2 + most * (one - low) / (high - low or 1) for edge, one in values.items()}
    for dashed in (False, True):
        some = [edge for edge in values if (edge in crossing) == dashed]
        style: dict[str, Any] = {"linestyles": [DASHES]} if dashed else {"capstyle": "round"}
        widths = [width[edge] for edge in some]
        axes.add_collection(
            LineCollection([[place[a], place[b]] for a, b in some], linewidths=widths, colors=LINE, **style)
        )


def _graph_legend(signs: dict[str, Sign]) -> list[Line2D]:
    """Return what modalities look like, and lines."""
    keys = [
        Line2D([], [], marker=marker, linestyle="", color=colour, markersize=size * 0.55, label=legible(kind))
        for kind, (colour, marker, size) in signs.items()
    ]
    styles: tuple[tuple[str, Any], ...] = (("within a modality", "-"), ("across modalities", DASHES))
    for label, style in styles:
        keys.append(Line2D([], [], color=LINE, linewidth=1.8, linestyle=style, label=label))
    return keys


def _ring(order: list[str]) -> dict[str, NDArray[np.float64]]:
    """Lay tasks out on a ring, alike ones side by side."""
    turns = 2 * np.pi * ((np.arange(len(order)) + 0.5) / len(order) + 0.25)
    return {task: np.array([1.5 * np.cos(turn), np.sin(turn)]) for task, turn in zip(order, turns, strict=True)}


def _write_edges(axes: Axes, values: dict[tuple[str, str], float], place: dict[str, NDArray[np.float64]]) -> None:
    """Write similarities on their lines: amid the ring's sides, off the middle of those that cross it."""
    side = min(float(np.linalg.norm(place[a] - place[b])) for a in place for b in place if a != b)
    for (a, b), value in values.items():
        part = 0.5 if np.linalg.norm(place[a] - place[b]) < 1.4 * side else 0.3
        x, y = (1 - part) * place[a] + part * place[b]
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
        axes.text(x, y, f"{value:.2f}", fontsize=8.5, color=MUTED, ha="center", va="center", bbox=box, zorder=2)


def _node(axes: Axes, task: str, place: NDArray[np.float64], gain: dict[str, float], sign: Sign) -> None:
    """Draw a task: its sign, and outside of the ring its name and its gain."""
    x, y = float(place[0]), float(place[1])
    colour, marker, size = sign
    axes.plot([x], [y], marker, markersize=size, color=colour, markeredgecolor=PAPER, markeredgewidth=2, zorder=3)
    text = short(task) + (f"  {points(gain[task] / 100)}" if task in gain else "")
    across = "left" if x > 0.1 else "right" if x < -0.1 else "center"
    up = "center" if abs(y) < 0.97 else "bottom" if y > 0 else "top"
    at = ({"left": 13.0, "right": -13.0, "center": 0.0}[across], {"center": 0.0, "bottom": 6.0, "top": -6.0}[up])
    if across == "center":
        at = (0.0, math.copysign(12.0, y))
    axes.annotate(text, (x, y), at, textcoords="offset points", ha=across, va=up, fontsize=10, zorder=4)


def _gain_colour(value: float | None, bound: float) -> Colour:
    """Return teal for a gain, orange for a loss, grey for neither or unknown."""
    if value is None:
        return OTHERS
    end = np.array([0.06, 0.52, 0.50]) if value > 0 else np.array([0.85, 0.42, 0.16])
    amount = 0.25 + 0.75 * min(1.0, abs(value) / bound)
    red, green, blue = ((1 - amount) * np.array([0.66, 0.68, 0.68]) + amount * end).tolist()
    return red, green, blue
