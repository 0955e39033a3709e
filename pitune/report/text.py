"""The result tables as Markdown, for a terminal and a README."""

from __future__ import annotations

from collections.abc import Sequence

from pitune.report.controls import verdict
from pitune.report.differences import DECIDING, FEWEST
from pitune.report.numbers import between, count, duration, plural, points
from pitune.report.overview import Overview, OverviewRow, overview, read_costs
from pitune.report.scores import (
    BASELINE,
    FULL,
    OURS,
    TargetScores,
    average,
    gap_ratio,
    methods_of,
    question,
    read_targets,
    title,
)
from pitune.report.tables import Cell, TableRow, average_row, seeds_text, shots_of, target_row
from pitune.report.words import bounds, controlled, zero_shot
from pitune.store import Store


def markdown(store: Store) -> str:
    """Return a row per method, then a row per target and the averages, as Markdown, and how to read them."""
    targets = read_targets(store)
    if not targets:
        return "No results yet.\n"
    total = average(targets)
    rows = overview(total, read_costs(store))
    tables = [_methods(rows), _targets(targets)]
    note = (
        f"Percent on the test split, mean ± standard deviation over {seeds_text(targets)}; bold: "
        f"best of the methods that see the same shots; gap closed: {gap_ratio()}, of the means"
        f"{' of targets that have not all their data' if FULL in shots_of(targets) else ''}."
    )
    gain = total.leads.get(BASELINE)
    if gain is not None:
        cost = "trials, steps and time" if rows.has_budget else "time"
        note += (
            f" {question()}: {points(gain.mean)} points ({bounds(gain)}). Intervals: paired bootstrap over "
            f"{plural(gain.slices, 'slice')} (a task, shots and a seed; none for fewer than {FEWEST}; fewer than "
            f"{DECIDING} decide nothing); {title(OURS)} ahead: points that it has over the method, and on how many "
            f"slices it is better or worse; {cost}: of one slice, all trials together, without the experts that it "
            "builds on."
        )
    said = [*zero_shot(total), controlled(verdict(total), list(total.targets))]
    return "\n\n".join([*filter(None, tables), note, *filter(None, said)]) + "\n"


def _methods(found: Overview) -> str:
    """Return the overview: what each method scores on average, how it compares, what it costs."""
    head = ["method", found.columns[0], f"{title(OURS)} ahead", "95 % interval", "better / worse", *found.columns[1:]]
    head += ["trials", "steps", "time"] if found.has_budget else ["time"]
    lines = [[_method(row), *_compared(row), *_cost(row, found.has_budget)] for _, rows in found.groups for row in rows]
    return table(head, lines) if lines else ""


def _method(row: OverviewRow) -> str:
    name = _plain(row.method.title)
    return f"*{name}*" if row.method.control else name


def _compared(row: OverviewRow) -> list[str]:
    lead = row.lead
    apart = ["–"] * 3 if lead is None else [points(lead.mean), between(lead), f"{lead.wins} / {lead.losses}"]
    return [_cell(row.means[0]), *apart, *map(_cell, row.means[1:])]


def _cost(row: OverviewRow, has_budget: bool) -> list[str]:
    budget = [count(row.cost.trials), count(row.cost.steps)] if has_budget else []
    return [*budget, duration(row.cost.seconds)]


def _targets(targets: Sequence[TargetScores]) -> str:
    """Return the result table: a row per target, then the averages."""
    methods, counts = methods_of(targets), shots_of(targets)
    head = ["task", "shots", *(title(method) for method in methods), question(), "gap closed"]
    lines = [_row(target_row(target, methods), _plain(target.task), target.shots) for target in targets]
    for shots in [*counts, "all"] if len(counts) > 1 else counts:
        total = average([target for target in targets if shots in ("all", target.shots)])
        if total.targets:
            name = f"*mean of {len(total.targets)}*"
            lines.append(_row(average_row(name, total, methods), name, shots))
    return table(head, lines)


def _row(row: TableRow, name: str, shots: str) -> list[str]:
    return [name, shots, *map(_cell, row.scores), row.gain.text, row.closed.text]


def _cell(cell: Cell) -> str:
    bold = "**" if cell.style == "best" else ""
    return f"{bold}{cell.text}{bold}" + (f" ± {cell.spread}" if cell.spread else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table as Markdown: names on the left, numbers on the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(map(_line, [head, rule, *rows]))


def _plain(text: str) -> str:
    """Keep a name from being read as Markdown or HTML."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        text = text.replace(sign, instead)
    return " ".join(text.split())
