"""The page: reads a study, draws it, fills the template and commits ``report.html``."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pitune.report import contents, figures, tables, task_figures, words
from pitune.report.contents import Manifests
from pitune.report.tables import NAMES, Overall, Score, Target
from pitune.store import Store, fingerprint_of

PAGE = "report.html"
VERSION = 2
"""Part of the page's fingerprint: raise it when the page changes."""
MOST_SEEDS = 12
"""So many seeds are listed in a cell's hover text."""


def write_report(store: Store) -> None:
    """Build the page from what the study holds and commit it as ``report.html``, unless it is there as it would be.

    Raises:
        PituneError: an artifact cannot be read, or the page cannot be written.
    """
    start = time.perf_counter()
    manifests = _manifests(store)
    inputs = {artifact: manifest["fingerprint"] for artifact, manifest in manifests.items()}
    fingerprint = fingerprint_of({"report": VERSION, "artifacts": inputs, "settings": contents.settings_text(store)})
    if store.is_current(PAGE, fingerprint):
        return
    data = build_page(store).encode()
    store.commit(PAGE, {"": data}, fingerprint, seconds=time.perf_counter() - start)


def build_page(store: Store) -> str:
    """Return the report as one HTML document that needs nothing from outside; the same study gives the same page.

    Raises:
        PituneError: an artifact cannot be read.
    """
    manifests = _manifests(store)
    targets = tables.read_targets(store)
    total = tables.overall(targets)
    edges = contents.read_edges(store, manifests)
    trials = contents.read_trials(store, manifests)
    chosen = [trial for trial in trials if trial.chosen]
    settings = contents.settings_text(store)
    return (
        _environment()
        .get_template("template.html")
        .render(
            name=PurePosixPath(store.root.rstrip("/")).name,
            sentences=words.headline(total, targets),
            helpers=words.helpers(edges),
            shortfalls=words.shortfalls(total, targets) if targets else [],
            tiles=_tiles(total),
            results=_results(targets, total),
            drawings=_drawings(store, manifests, targets, edges, trials),
            neighbours=words.neighbours(edges),
            trials=chosen,
            owns={trial.own for trial in trials},
            own_choice=words.own_choice(trials),
            stages=_stages(manifests),
            facts=_facts(manifests),
            settings=settings,
            versions=_versions(manifests),
        )
    )


def _environment() -> Environment:
    """Return a template environment that escapes everything and knows the number formats."""
    loader = PackageLoader("pitune.report", ".")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"points": tables.points, "share": tables.share, "duration": duration, "size": size}
    return found


def _manifests(store: Store) -> Manifests:
    """Return the manifests that the page is about; artifacts of slices that left the settings stay in the store."""
    is_wanted = contents.wanted(contents.settings_text(store))
    return {name: manifest for name, manifest in store.artifacts().items() if name != PAGE and is_wanted(name)}


# --- results -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number of the result table: its text, its spread, its seeds for the hover text, how it is set."""

    text: str
    spread: str = ""
    seeds: str = ""
    style: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the result table; ``average`` for those that sum others up."""

    title: str
    note: str
    cells: list[Cell]
    average: bool = False


@dataclass(frozen=True)
class Block:
    """The rows of one shot count, or the averages over all."""

    title: str
    rows: list[Row]


def _results(targets: list[Target], total: Overall) -> dict[str, Any]:
    """Return the result table: its methods, its blocks by shots, the scores of every seed."""
    methods = [method for method in tables.METHODS if any(method in target.scores for target in targets)]
    counts = sorted({target.shots for target in targets}, key=contents.shots_order)
    blocks = []
    for shots in counts:
        some = [target for target in targets if target.shots == shots]
        part = tables.overall(some)
        rows = [_target_row(target, methods) for target in some]
        if len(part.targets) > 1:
            rows.append(_average_row(f"mean of {len(part.targets)}", part, methods))
        blocks.append(Block(f"{shots} shots per class" if shots != "1" else "1 shot per class", rows))
    if len(counts) > 1 and total.targets:
        blocks.append(
            Block("all shots", [_average_row(f"mean of {words.plural(len(total.targets), 'target')}", total, methods)])
        )
    return {
        "methods": [(method, NAMES[method]) for method in methods],
        "blocks": blocks,
        "same": words.listed([NAMES[method] for method in tables.SAME_SHOTS if method in methods] or ["none"]),
        "seeds": words.seeds_text(targets) if targets else "",
        "one_seed": all(len(score.values) == 1 for target in targets for score in target.scores.values()),
        "ratio": total.gap_closed,
        "mean_of_ratios": total.mean_of_ratios,
        "ratios": total.ratios,
        "per_seed": [_seed_row(target, seed, methods) for target in targets for seed in _seeds(target)],
    }


def _target_row(target: Target, methods: list[str]) -> Row:
    cells = [_cell(target.scores.get(method), "best" if method in target.best else "") for method in methods]
    gain = target.gain.mean if target.gain else None
    cells += [_gain_cell(gain, target.gain), Cell(tables.share(target.gap_closed))]
    seeds = max(len(score.values) for score in target.scores.values())
    return Row(target.task, f"{target.metric}, {target.examples} tested, {words.plural(seeds, 'seed')}", cells)


def _average_row(title: str, total: Overall, methods: list[str]) -> Row:
    cells = []
    for method in methods:
        cell = _cell(total.scores.get(method), "best" if method in total.best else "")
        cells.append(Cell(_number(total.means.get(method)), cell.spread, cell.seeds, cell.style))
    cells += [_gain_cell(total.gain, total.gain_seeds), Cell(tables.share(total.gap_closed))]
    return Row(title, "every target counts once", cells, average=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _cell(score: Score | None, style: str) -> Cell:
    if score is None:
        return Cell("–")
    spread = tables.percent(score).partition(" ± ")[2]
    return Cell(_number(score.mean), spread, _seed_text(score, _number), style)


def _gain_cell(gain: float | None, score: Score | None) -> Cell:
    spread = "" if score is None or math.isnan(score.std) else f"{100 * score.std:.1f}"
    style = "" if gain is None or abs(gain) < words.LEVEL else "up" if gain > 0 else "down"
    return Cell(tables.points(gain), spread, _seed_text(score, tables.points) if score else "", style)


def _seed_text(score: Score, form: Any) -> str:
    """Return ``seed 0: 84.1, seed 1: 85.0``."""
    shown = [f"seed {seed}: {form(value)}" for seed, value in list(score.values.items())[:MOST_SEEDS]]
    return ", ".join(shown) + (", …" if len(score.values) > MOST_SEEDS else "")


def _seeds(target: Target) -> list[int]:
    return sorted({seed for score in target.scores.values() for seed in score.values})


def _seed_row(target: Target, seed: int, methods: list[str]) -> tuple[str, list[str]]:
    scores = [target.scores[m].values.get(seed) if m in target.scores else None for m in methods]
    return f"{target.task}@{target.shots}#{seed}", [_number(score) for score in scores]


def _tiles(total: Overall) -> list[tuple[str, str, str]]:
    """Return the headline numbers: value, what it is, a finer point."""
    if total.gain is None:
        return []
    tiles = []
    if total.gap_closed is not None:
        tiles.append((tables.share(total.gap_closed), "of the gap to full data closed", "ratio of mean gaps"))
    spread = (
        "1 seed"
        if total.gain_seeds is None or math.isnan(total.gain_seeds.std)
        else f"± {100 * total.gain_seeds.std:.1f} over seeds"
    )
    tiles.append((tables.points(total.gain), "points over the single expert", spread))
    wins = sum(1 for target in total.targets if target.gain is not None and target.gain.mean > words.LEVEL)
    tiles.append((f"{wins} / {len(total.targets)}", "targets ahead of the single expert", "mean over seeds"))
    if total.worst is not None:
        target, value = total.worst
        tiles.append(
            (tables.points(value), "points on the worst target", contents.group_name((target.task, target.shots)))
        )
    return tiles


# --- figures and the rest ------------------------------------------------------------------------------------------


def _drawings(
    store: Store,
    manifests: Manifests,
    targets: list[Target],
    edges: list[contents.Edge],
    trials: list[contents.Trial],
) -> dict[str, Markup]:
    """Return every figure by name; empty where there is nothing to draw. What matplotlib writes is escaped."""
    found = contents.read_weights(store, manifests)
    tasks = contents.chain_order(edges) or sorted({group[0] for group in found})
    gain: dict[str, list[float]] = {}
    for target in targets:
        if target.gain is not None:
            gain.setdefault(target.task, []).append(100 * target.gain.mean)
    experts = contents.read_curves(store, manifests, "experts")
    merged = contents.read_curves(store, manifests, "interpolations")
    drawn = {
        "gains": figures.gains(targets),
        "heatmap": task_figures.heatmap(contents.similarity(edges, contents.graph_columns(edges, full=False))),
        "graph": task_figures.task_graph(
            contents.task_similarity(edges), tasks, {t: sum(v) / len(v) for t, v in gain.items()}
        ),
        "weights": figures.weights(found, tasks),
        "layers": figures.layer_weights(found, tasks),
        "sweeps": figures.sweeps(trials),
        "losses": figures.curves(experts, "loss", "Training loss of every expert"),
        "validations": figures.curves(experts, "validation", "Validation loss of every expert during training"),
        "tuning": figures.curves(merged, "loss", "Training loss of every interpolation"),
    }
    return {name: Markup(text) for name, text in drawn.items()}


def _stages(manifests: Manifests) -> dict[str, Any]:
    """Return the cost of each stage, its share of the longest, and the sums."""
    stages = tables.cost(manifests)
    most = max((stage.seconds for stage in stages), default=0.0) or 1.0
    return {
        "rows": [(stage, 100 * stage.seconds / most) for stage in stages],
        "seconds": sum(stage.seconds for stage in stages),
        "bytes": sum(stage.bytes for stage in stages),
        "artifacts": sum(stage.artifacts for stage in stages),
    }


def _facts(manifests: Manifests) -> dict[str, Any]:
    """Return what the experts' manifests say of their training, and when the last artifact was written."""
    experts = [manifest for artifact, manifest in manifests.items() if artifact.startswith("experts/")]
    selections = Counter(str(manifest["selection"]) for manifest in experts if "selection" in manifest)
    names = {"last": "the last step's", "best": "the best on validation"}
    return {
        "selection": [(names.get(name, name), count) for name, count in sorted(selections.items())],
        "experts": len(experts),
        "written": max((str(manifest.get("written", "")) for manifest in manifests.values()), default=""),
    }


def _versions(manifests: Manifests) -> list[tuple[str, str]]:
    """Return each package with the versions that made the study; several where it went on after an update."""
    found: dict[str, set[str]] = {}
    for manifest in manifests.values():
        for package, number in manifest.get("versions", {}).items():
            found.setdefault(package, set()).add(str(number))
    return [(package, ", ".join(sorted(numbers))) for package, numbers in found.items()]


def duration(seconds: float) -> str:
    """Return ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """Return a number of bytes as ``3.2 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
