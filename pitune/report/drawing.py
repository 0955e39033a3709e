"""How figures are drawn: matplotlib to SVG text that lives inside the page and takes its colours and fonts.

Figures are drawn in stand-in colours; in the SVG they become the page's CSS variables, so that one drawing is right in
light, in dark and on paper. Text stays text: it can be read out, searched and copied.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

INK, MUTED, LINE, PAPER, ACCENT, HEAT = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
"""Stand-ins for the page's colours: text, quieter text, rules and grids, background, what is ours, shades of much."""
UP, DOWN = "#070809", "#08090a"
"""More: shades of gains and losses."""
VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper", ACCENT: "--accent", HEAT: "--heat",
    UP: "--up", DOWN: "--down",
}  # fmt: skip
PALETTE = (
    "#2f86a6", "#e0913f", "#5aa05a", "#c75b7e", "#8d70c4", "#b8a035",
    "#45b0a4", "#d56f4e", "#6f86cf", "#94905c", "#a5645a", "#5f9bd1", "#8fc3d6", "#f0c896", "#a9d3a9", "#e3adc0",
    "#c5b4e0", "#dccf86", "#9fd8d1", "#eab5a3",
)  # fmt: skip
"""Colours of tasks, from the 13th on lighter ones; those past the last share :data:`OTHERS`."""
OTHERS = "#9a9a9a"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.0,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.6,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style; the caller's matplotlib settings come back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` × ``height`` inches; nothing global keeps it."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels in rows of at most ``columns``, each ``width`` × ``height`` inches."""
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    drawn = figure(max(columns * width, 3.0), rows * height + 0.35)
    axes = drawn.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return drawn, axes[:count]


def finish(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Give a panel its grid, few ticks, title and labels."""
    axes.grid(True)
    axes.tick_params(length=0, labelsize=8.5)
    axes.set_title(title, loc="left", fontsize=9.5)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(4))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))


def name_rows(axes: Axes, names: Sequence[str], x: str) -> None:
    """Name the rows of a figure from above to below, around a line at zero; ``x`` says what is measured."""
    finish(axes, x=x)
    axes.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)


def note_row(axes: Axes, y: int, text: str) -> None:
    """Write a row's number beside the axes."""
    axes.text(1.075, y, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9)


def svg(drawn: Figure, label: str, least: int = 620) -> str:
    """Return ``drawn`` as one inline SVG element, described by ``label`` to those who do not see it.

    It shrinks with the page down to ``least`` pixels; from there on the page scrolls it.
    """
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": hashlib.sha256(label.encode()).hexdigest()}):
        drawn.set_canvas(FigureCanvasSVG(drawn))
        drawn.savefig(sink, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(sink.getvalue(), drawn.get_size_inches()[0], label, least)


def _inline(text: str, inches: float, label: str, least: int) -> str:
    """Cut matplotlib's document down to an element that scales, has no ids of its own and follows the page's theme."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found.group(0) if found.group(1) in used else "", text)
    text = re.sub(r"font-family: [^;\"<>]*; ?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r' (?:d|x|y|width|height|transform)="[^"<>]*"', _shorten, text)
    text = re.sub(r"\n\s*", "\n", text)
    box = re.search(r'viewBox="([^"]+)"', text)
    pixels = round(inches * 96)
    opening = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box.group(1) if box else ""}" role="img" '
        f'aria-label="{escape(label)}" style="max-width:{pixels}px;min-width:min({pixels}px,{least}px)">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)


def _shorten(found: re.Match[str]) -> str:
    """Cut an attribute's numbers to two decimals."""
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", found.group(0))


def task_colours(tasks: list[str]) -> dict[str, str]:
    """Give each task a colour, in order."""
    return {task: PALETTE[i] if i < len(PALETTE) else OTHERS for i, task in enumerate(tasks)}


def short(name: str, width: int = 24) -> str:
    """Cut a long name so that it cannot crowd a figure out."""
    name = " ".join(name.split())
    return name if len(name) <= width else name[: width - 1] + "…"


def short_group(group: tuple[str, str], width: int = 20) -> str:
    """Return ``movie@16``, a long task's name cut, its shots never."""
    task, shots = group
    return f"{short(task, width)}@{shots}" if shots else short(task, width)


def shots_title(count: str) -> str:
    """Return ``16 shots`` or ``full data``."""
    return "full data" if count == "full" else f"{count} shot{'' if count == '1' else 's'}"


def dot(label: str, colour: str, edge: str = "none", alpha: float = 1.0) -> Line2D:
    """Return a legend's dot."""
    found = Line2D([], [], marker="o", linestyle="", markersize=7, markeredgecolor=edge, label=label)
    found.set(markerfacecolor=colour, alpha=alpha)
    return found


def legible(name: str) -> str:
    """Return a name as a legend takes it: matplotlib leaves out those that begin with an underscore."""
    return short(name).lstrip("_") or "(unnamed)"


def _legend_width(keys: list[Line2D] | list[Patch], columns: int) -> float:
    """Return about how many inches a legend takes that is filled column by column."""
    lengths = np.array_split([len(str(key.get_label())) for key in keys], columns)
    return float(sum(0.45 + 0.062 * length.max() for length in lengths))


def legend(drawn: Figure, keys: list[Line2D] | list[Patch]) -> None:
    """Put a legend above a figure, in as many columns as fit."""
    columns = min(7, len(keys))
    while columns > 1 and _legend_width(keys, columns) > drawn.get_figwidth():
        columns -= 1
    drawn.set_figheight(drawn.get_figheight() + 0.19 * (-(-len(keys) // columns) - 1))
    drawn.legend(handles=keys, loc="outside upper left", ncols=columns, fontsize=9, handlelength=1.1, columnspacing=1.3)
