"""The report's tables: scores as cells, and what every family of artifacts cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pitune.report.contents import Manifests, shots_order
from pitune.report.numbers import percent, plural, points, share, span, spread
from pitune.report.scores import Average, Score, TargetScores, average, methods_of, seed_counts

LEVEL = 0.0005
"""Differences below this, half a tenth of a point, are called level."""
MOST_SEEDS = 12
"""So many seeds are listed in a cell's hover text."""


def seeds_text(targets: Sequence[TargetScores]) -> str:
    """Return how many seeds the targets have: ``3 seeds``, ``1 to 3 seeds``."""
    return span(seed_counts(targets), "seed")


# --- the result table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number of the result table: its text, its spread, its seeds for the hover text, its styles."""

    text: str
    spread: str = ""
    seeds: str = ""
    style: str = ""


@dataclass(frozen=True)
class TableRow:
    """A line of the result table: a cell for each method, what is gained, the gap closed.

    ``average`` marks off those that sum others up.
    """

    title: str
    note: str
    scores: list[Cell]
    gain: Cell
    closed: Cell
    average: bool = False


@dataclass(frozen=True)
class Block:
    """The rows of one shot count, or the averages over all."""

    title: str
    rows: list[TableRow]


def blocks(targets: Sequence[TargetScores]) -> list[Block]:
    """Return the result table: a block for each shot count, the last one the average over all."""
    methods, counts, found = methods_of(targets), shots_of(targets), []
    for shots in counts:
        some = [target for target in targets if target.shots == shots]
        total = average(some)
        rows = [target_row(target, methods) for target in some]
        if len(total.targets) > 1:
            rows.append(average_row(f"mean of {len(total.targets)}", total, methods))
        found.append(Block(f"{plural(int(shots), 'shot')} per class" if shots.isdigit() else f"{shots} data", rows))
    total = average(targets)
    if len(counts) > 1 and total.targets:
        row = average_row(f"mean of {plural(len(total.targets), 'target')}", total, methods)
        found.append(Block("all shots", [row]))
    return found


def target_row(target: TargetScores, methods: Sequence[str]) -> TableRow:
    """Return a target's row."""
    seeds = max(len(score.values) for score in target.scores.values())
    note = f"{target.metric}, {target.examples} tested, {plural(seeds, 'seed')}"
    best = target.best
    cells = [_score_cell(target.scores.get(method), method in best) for method in methods]
    gain = _gain_cell(target.gain.mean if target.gain else None, target.gain)
    return TableRow(target.task, note, cells, gain, Cell(share(target.gap_closed)))


def average_row(name: str, total: Average, methods: Sequence[str]) -> TableRow:
    """Return the row of an average; its spreads only where seeds and targets are complete."""
    cells = average_cells(total, methods)
    gain = _gain_cell(total.gain, total.gain_seeds)
    return TableRow(name, "every target counts once", cells, gain, Cell(share(total.gap_closed)), average=True)


def average_cells(total: Average, methods: Sequence[str]) -> list[Cell]:
    """Return each method's cell of an average."""
    cells = []
    for method in methods:
        cell = _score_cell(total.scores.get(method), method in total.best)
        cells.append(Cell(percent(total.means.get(method)), cell.spread, cell.seeds, cell.style))
    return cells


def seed_rows(targets: Sequence[TargetScores]) -> list[tuple[str, list[str]]]:
    """Return the name of every slice and what each method scored on it."""
    methods = methods_of(targets)
    return [
        (
            f"{target.name}#{seed}",
            [percent(target.scores[m].values.get(seed)) if m in target.scores else "–" for m in methods],
        )
        for target in targets
        for seed in sorted({seed for score in target.scores.values() for seed in score.values})
    ]


def shots_of(targets: Sequence[TargetScores]) -> list[str]:
    """Return the shot counts of ``targets``, the fewest first."""
    return sorted({target.shots for target in targets}, key=shots_order)


def _score_cell(score: Score | None, best: bool) -> Cell:
    """Return a method's cell; no spread where all seeds are equal, as those of one expert for all of them."""
    if score is None:
        return Cell("–")
    around = spread(score) if score.std else ""
    return Cell(percent(score.mean), around, _seed_text(score, percent), "best" if best else "")


def _gain_cell(gain: float | None, seeds: Score | None) -> Cell:
    style = "" if gain is None or abs(gain) < LEVEL else "up" if gain > 0 else "down"
    return Cell(points(gain), spread(seeds), _seed_text(seeds, points) if seeds else "", style)


def _seed_text(score: Score, form: Callable[[float], str]) -> str:
    """Return ``seed 0: 84.1, seed 1: 85.0``."""
    shown = [f"seed {seed}: {form(value)}" for seed, value in list(score.values.items())[:MOST_SEEDS]]
    return ", ".join(shown) + (", …" if len(score.values) > MOST_SEEDS else "")


# --- what it cost --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FamilyCost:
    """What a family of artifacts, those whose paths begin alike, cost; ``seconds`` is None where none is recorded."""

    name: str
    artifacts: int
    seconds: float | None
    bytes: int


def costs(manifests: Manifests) -> list[FamilyCost]:
    """Add up the seconds and bytes of the manifests by family, the costliest first.

    Work done side by side counts in full. A copy of the best of several trials names the one that it is a copy of, and
    the seconds of all of them: those count where the trials lie. So do those of what an average was made of.
    """
    families: dict[str, list[str]] = defaultdict(list)
    for artifact in manifests:
        families[PurePosixPath(artifact.partition("/")[0]).stem].append(artifact)
    found = []
    for name, artifacts in families.items():
        several = [manifests[artifact] for artifact in artifacts]
        seconds = [_own_seconds(manifest, manifests) for manifest in several if _has_seconds(manifest)]
        size = sum(file["bytes"] for manifest in several for file in manifest["files"].values())
        found.append(FamilyCost(name, len(several), sum(seconds) if seconds else None, size))
    return sorted(found, key=lambda family: (-(family.seconds or 0.0), -family.bytes, family.name))


def _has_seconds(manifest: dict[str, Any]) -> bool:
    return manifest.get("seconds") is not None and "chosen" not in manifest


def _own_seconds(manifest: dict[str, Any], manifests: Manifests) -> float:
    """Return the seconds of an artifact, less those of the artifacts that it says it has tried: they are in them."""
    tried = manifest.get("tried")
    known = [manifests[name] for name in tried if name in manifests] if isinstance(tried, dict) else []
    return float(manifest["seconds"]) - sum(float(one["seconds"] or 0) for one in known)
