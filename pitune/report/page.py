"""The page: reads a study, draws it, fills the template and commits ``report.html``."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pitune.methods import METHODS
from pitune.report import (
    cards,
    contents,
    controls,
    figures,
    modalities,
    numbers,
    overview,
    paired,
    prediction,
    ranking,
    score_figures,
    scores,
    similarities,
    tables,
    task_figures,
    transfer,
    transfer_figures,
    words,
)
from pitune.report.contents import Manifests
from pitune.report.overview import Overview
from pitune.report.scores import Average, TargetScores
from pitune.report.similarities import GraphEdge
from pitune.results import TRANSFER
from pitune.store import Store, fingerprint_of

PAGE = "report.html"
VERSION = 8
"""Part of the page's fingerprint: raise it when the page changes."""


def write_report(store: Store) -> None:
    """Build the page from what the study holds and commit it as ``report.html``, unless it is there as it would be.

    Raises:
        PituneError: an artifact cannot be read, or the page cannot be written.
    """
    start = time.perf_counter()
    manifests, settings = _manifests(store)
    inputs = {artifact: manifest["fingerprint"] for artifact, manifest in manifests.items()}
    told = {name: [method.title, method.note, method.sees, method.control] for name, method in METHODS.items()}
    fingerprint = fingerprint_of({"report": VERSION, "artifacts": inputs, "settings": settings, "methods": told})
    if not store.is_current(PAGE, fingerprint):
        data = _page(store, manifests, settings).encode()
        store.commit(PAGE, {"": data}, fingerprint, seconds=time.perf_counter() - start)


def build_page(store: Store) -> str:
    """Return the report as one HTML document that needs nothing from outside; the same study gives the same page.

    Raises:
        PituneError: an artifact cannot be read.
    """
    return _page(store, *_manifests(store))


def _manifests(store: Store) -> tuple[Manifests, str]:
    """Return the manifests that the page is about, and the settings.

    Artifacts of slices that left the settings stay in the store, but not in the page.
    """
    settings = contents.settings_text(store)
    is_wanted = contents.wanted(settings)
    found = {name: manifest for name, manifest in store.artifacts().items() if name != PAGE and is_wanted(name)}
    return found, settings


def _page(store: Store, manifests: Manifests, settings: str) -> str:
    """Fill the template."""
    targets = scores.read_targets(store)
    total = scores.average(targets)
    rows = overview.overview(total, overview.read_costs(store))
    graph = transfer.read_rows(store, manifests, "graph.parquet")
    edges = similarities.read_edges(graph)
    trials = contents.read_trials(store, manifests)
    told = cards.read_cards(manifests)
    of = {task: card.modality for task, card in told.items()}
    moved = _transfer(store, manifests, graph, edges, of)
    return (
        _environment()
        .get_template("template.html")
        .render(
            name=store.name,
            sentences=[*words.headline(total, targets), *words.zero_shot(total)],
            controlled=words.controlled(controls.verdict(total), list(total.targets)),
            helpers=words.helpers(edges),
            shortfalls=[*words.shortfalls(total, targets), *words.overlapping(manifests)] if targets else [],
            tiles=_tiles(total),
            results=_results(targets, total),
            overview=rows,
            transfer=moved,
            cards=list(told.values()),
            galleries=_galleries(store, manifests, told),
            drawings=_drawings(store, manifests, total, targets, edges, trials, of) | _compared(rows, moved["matrix"]),
            neighbours=words.neighbours(edges),
            trials=[trial for trial in trials if trial.chosen],
            owns={trial.own for trial in trials},
            rates={trial.rate for trial in trials},
            own_choice=words.own_choice(trials),
            costs=_costs(manifests),
            facts=_facts(manifests),
            settings=settings,
            versions=_versions(manifests),
        )
    )


def _environment() -> Environment:
    """Return a template environment that escapes everything and knows the number formats."""
    loader = PackageLoader("pitune.report", ".")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {
        "share": numbers.share,
        "points": numbers.points,
        "between": numbers.between,
        "ends": numbers.ends,
        "duration": numbers.duration,
        "size": numbers.size,
        "count": numbers.count,
    }
    return found


# --- results -------------------------------------------------------------------------------------------------------


def _results(targets: list[TargetScores], total: Average) -> dict[str, Any]:
    """Return the result table, what is to be said about it, and the scores of every seed."""
    methods = scores.methods_of(targets)
    same = [scores.title(method) for method in scores.same_shots() if method in methods]
    return {
        "methods": [METHODS[method] for method in methods],
        "blocks": tables.blocks(targets),
        "question": scores.question(),
        "gap_ratio": scores.gap_ratio(),
        "ours": scores.title(scores.OURS),
        "ceiling": scores.title(scores.ceiling()) if scores.ceiling() else "ceiling",
        "same": words.listed(same or ["none"], most=len(METHODS)),
        "averaged": numbers.plural(len(total.targets), "target"),
        "seeds": tables.seeds_text(targets) if targets else "",
        "one_seed": scores.seed_counts(targets) == [1],
        "ratio": total.gap_closed,
        "ratios": total.ratios,
        "per_seed": tables.seed_rows(targets),
    }


def _tiles(total: Average) -> list[tuple[str, str, str]]:
    """Return the headline numbers: value, what it is, a finer point."""
    if total.gain is None:
        return []
    tiles = []
    if total.gap_closed is not None:
        above = scores.title(scores.ceiling())
        tiles.append((numbers.share(total.gap_closed), f"of the gap to {above} closed", "ratio of mean gaps"))
    spread = numbers.spread(total.gain_seeds)
    finer = f"± {spread} over seeds" if spread else "1 seed"
    tiles.append((numbers.points(total.gain), "points over the single expert", finer))
    ahead = f"{words.wins(total)} / {len(total.targets)}"
    tiles.append((ahead, "targets ahead of the single expert", "mean over seeds"))
    if total.worst is not None:
        target, value = total.worst
        tiles.append((numbers.points(value), "points on the worst target", target.name))
    return tiles


# --- transfer ------------------------------------------------------------------------------------------------------


def _transfer(
    store: Store, manifests: Manifests, graph: list[dict[str, Any]], edges: list[GraphEdge], of: dict[str, str]
) -> dict[str, Any]:
    """Return what was measured of transfer, how well it was predicted, what crosses modalities, who is near everyone.

    ``of`` is the modality of each task that has a card.
    """
    measured = transfer.read_rows(store, manifests, TRANSFER)
    pairs = transfer.read_pairs(measured)
    judgements = prediction.judge(measured, graph)
    near = prediction.occurrence(ranking.few_shot(graph), ranking.NEAREST)
    is_mixed = len(set(of.values())) > 1
    reaches = paired.reaches(store, manifests, measured) if is_mixed and prediction.are_few(measured) else {}
    crossing = modalities.crossing(of, edges, pairs, tables.LEVEL, reaches)
    return {
        "pairs": pairs,
        "crossing": crossing,
        "crossed": words.crossed(crossing) if crossing else [],
        "fits": modalities.fits(of, measured, graph) if crossing else [],
        "matrix": transfer.matrix(pairs, edges),
        "sentences": words.transferred(pairs) + words.predicted(judgements, graph),
        "rankings": ranking.rankings(judgements, graph),
        "near": [(contents.split_slice(one.source)[0], one) for one in near],
        "hubs": words.hubs(near, ranking.NEAREST),
        "nearest": ranking.NEAREST,
    }


def _compared(rows: Overview, matrix: transfer.Matrix | None) -> dict[str, Markup]:
    """Return the figures that compare: methods with each other, and what was predicted with what was measured."""
    drawn = {
        "rivals": transfer_figures.rivals(rows.rivals),
        "measured": transfer_figures.measured(matrix),
        "predicted": transfer_figures.predicted(matrix),
    }
    return {name: Markup(text) for name, text in drawn.items()}


def _galleries(
    store: Store, manifests: Manifests, told: dict[str, cards.Card]
) -> tuple[list[cards.Gallery], list[cards.Gallery]]:
    """Return the galleries: the first one of each modality, and the others, which the page folds away."""
    found = cards.read_galleries(store, manifests, told)
    firsts = {gallery.card.modality: gallery for gallery in reversed(found)}
    first = [firsts[one] for one in modalities.ordered(firsts)]
    return first, [gallery for gallery in found if gallery not in first]


# --- figures and the rest ------------------------------------------------------------------------------------------


def _drawings(
    store: Store,
    manifests: Manifests,
    total: Average,
    targets: list[TargetScores],
    edges: list[GraphEdge],
    trials: list[contents.Trial],
    of: dict[str, str],
) -> dict[str, Markup]:
    """Return every figure by name; empty where there is nothing to draw. What matplotlib writes is escaped."""
    found = contents.read_weights(store, manifests)
    tasks = similarities.chain_order(edges) or sorted({group[0] for group in found})
    columns = similarities.graph_columns(edges, full=False)
    experts = contents.read_curves(store, manifests, "experts")
    merged = contents.read_curves(store, manifests, "interpolations")
    drawn = {
        "gains": score_figures.gains(targets),
        "methods": score_figures.methods(total),
        "heatmap": task_figures.heatmap(similarities.similarity(edges, columns, tasks)),
        "graph": task_figures.task_graph(similarities.task_similarity(edges), tasks, _gains(targets), of),
        "weights": figures.weights(found, tasks),
        "layers": figures.layer_weights(found, tasks),
        "sweeps": figures.sweeps(trials),
        "losses": figures.curves(experts, "loss", "Training loss of every expert"),
        "validations": figures.curves(experts, "validation", "Validation loss of every expert during training"),
        "tuning": figures.curves(merged, "loss", "Training loss of every interpolation"),
    }
    return {name: Markup(text) for name, text in drawn.items()}


def _gains(targets: list[TargetScores]) -> dict[str, float]:
    """Return what is gained on each task, in points, the mean over its targets."""
    found: dict[str, list[float]] = {}
    for target in targets:
        if target.gain is not None:
            found.setdefault(target.task, []).append(100 * target.gain.mean)
    return {task: statistics.fmean(values) for task, values in found.items()}


def _costs(manifests: Manifests) -> dict[str, Any]:
    """Return the cost of each stage, a family of artifacts: its share of the sum and of the longest; and the sums."""
    families = tables.costs(manifests)
    seconds = [family.seconds or 0.0 for family in families]
    most, total = max(seconds, default=0.0) or 1.0, sum(seconds)
    return {
        "rows": [(one, took / (total or 1.0), 100 * took / most) for one, took in zip(families, seconds, strict=True)],
        "seconds": total,
        "bytes": sum(family.bytes for family in families),
        "artifacts": sum(family.artifacts for family in families),
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
