"""The figures behind the report: scores over seeds, gaps closed, the best method, what it cost.

Averages are taken over seeds first and over targets second, every target (a task at a shot count) counting once. The
spread is the sample standard deviation over seeds; of an average over targets, it is that of the per-seed averages.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass

from pitune.report.contents import Manifests, group_order, shots_order
from pitune.store import Store

METHODS = ("zero_shot", "single", "uniform", "nearest", "pi", "full")
"""Every method, in the order of the table."""
SAME_SHOTS = ("single", "uniform", "nearest", "pi")
"""The methods that see the target's shots and nothing else of it: those that may be compared."""
NAMES = {
    "zero_shot": "zero-shot",
    "single": "single",
    "uniform": "uniform",
    "nearest": "nearest",
    "pi": "pi",
    "full": "full data",
}
STAGES = ("experts", "baselines", "embeddings", "interpolations", "predictions")
"""The families of artifacts whose seconds are added up; sweeps count with interpolations."""


@dataclass(frozen=True)
class Score:
    """A value per seed."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float:
        """The sample standard deviation over seeds; NaN for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Target:
    """A task at a shot count: each method's score, all seeds."""

    task: str
    shots: str
    metric: str
    examples: int
    scores: dict[str, Score]

    @property
    def gain(self) -> Score | None:
        """``pi - single``, seed by seed; None where no seed has both."""
        return difference(self.scores, "pi", "single")

    @property
    def gap_closed(self) -> float | None:
        """``(pi - single) / (full - single)`` of the means over seeds; None where there is no gap."""
        return ratio(self.scores)

    @property
    def best(self) -> tuple[str, ...]:
        """The methods with the highest mean among :data:`SAME_SHOTS`."""
        return best_methods({method: score.mean for method, score in self.scores.items()})


@dataclass(frozen=True)
class Overall:
    """Averages over targets.

    Attributes:
        targets: those averaged: all that have every method which any target has.
        left_out: how many were not, for want of a method.
        scores: each method's mean over ``targets``, seed by seed; seeds that every target has.
        means: each method's mean over ``targets`` of the means over their seeds.
        gap_closed: the headline, the ratio of mean gaps: ``(mean pi - mean single) / (mean full - mean single)``.
        gap_closed_seeds: the same within each seed.
        mean_of_ratios: the mean of the targets' own ratios, which small gaps make unsteady.
        ratios: how many targets have one (``full`` above ``single``).
    """

    targets: list[Target]
    left_out: int
    scores: dict[str, Score]
    means: dict[str, float]
    gap_closed: float | None
    gap_closed_seeds: Score | None
    mean_of_ratios: float | None
    ratios: int

    @property
    def gain(self) -> float | None:
        """Mean of ``pi - single`` over targets."""
        if "pi" not in self.means or "single" not in self.means:
            return None
        return self.means["pi"] - self.means["single"]

    @property
    def gain_seeds(self) -> Score | None:
        """The same within each seed."""
        return difference(self.scores, "pi", "single")

    @property
    def best(self) -> tuple[str, ...]:
        """The methods with the highest mean among those that see the same shots."""
        return best_methods(self.means)

    @property
    def worst(self) -> tuple[Target, float] | None:
        """The target where ``pi - single`` is least, and that difference (a fraction, not points)."""
        gains = [(target, target.gain.mean) for target in self.targets if target.gain is not None]
        return min(gains, key=lambda pair: pair[1]) if gains else None


@dataclass(frozen=True)
class Stage:
    """What one family of artifacts cost."""

    name: str
    artifacts: int
    seconds: float
    bytes: int


def difference(scores: dict[str, Score], first: str, second: str) -> Score | None:
    """Return ``first - second`` over the seeds that both have."""
    if first not in scores or second not in scores:
        return None
    a, b = scores[first].values, scores[second].values
    values = {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}
    return Score(values) if values else None


def closed(pi: float, single: float, full: float) -> float | None:
    """Return ``(pi - single) / (full - single)``; None where ``full`` is not above ``single``."""
    return (pi - single) / (full - single) if full - single > 1e-9 else None


def ratio(scores: dict[str, Score]) -> float | None:
    """Return the gap closed of one target from its means over the seeds that all three methods have."""
    if any(method not in scores for method in ("pi", "single", "full")):
        return None
    seeds = sorted(set.intersection(*(set(scores[method].values) for method in ("pi", "single", "full"))))
    if not seeds:
        return None
    mean = {m: statistics.fmean(scores[m].values[seed] for seed in seeds) for m in ("pi", "single", "full")}
    return closed(mean["pi"], mean["single"], mean["full"])


def best_methods(means: dict[str, float]) -> tuple[str, ...]:
    """Return the methods of :data:`SAME_SHOTS` with the highest mean, to the decimal shown; none of only one."""
    shown = {method: round(100 * means[method], 1) for method in SAME_SHOTS if method in means}
    return tuple(method for method in shown if shown[method] == max(shown.values())) if len(shown) > 1 else ()


def read_targets(store: Store) -> list[Target]:
    """Return the scores of ``results.parquet``, by task and shots; empty where there are none yet.

    Where a task has several metrics, its first row's counts.
    """
    if store.manifest("results.parquet") is None:
        return []
    metrics: dict[str, str] = {}
    examples: dict[tuple[str, str], int] = {}
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in store.table("results.parquet").to_pylist():
        metric = metrics.setdefault(row["task"], row["metric"])
        if row["metric"] == metric and row["value"] is not None and math.isfinite(row["value"]):
            group = (row["task"], str(row["shots"]))
            values[group][row["method"]][int(row["seed"])] = float(row["value"])
            examples[group] = int(row["examples"] or 0)
    return [
        Target(
            *group,
            metrics[group[0]],
            examples[group],
            {m: Score(values[group][m]) for m in METHODS if m in values[group]},
        )
        for group in sorted(values, key=lambda group: (shots_order(group[1]), group_order(group)))
    ]


def overall(targets: list[Target]) -> Overall:
    """Average over ``targets``."""
    methods = [method for method in METHODS if any(method in target.scores for target in targets)]
    whole = [target for target in targets if all(method in target.scores for method in methods)]
    means = {m: statistics.fmean(target.scores[m].mean for target in whole) for m in methods if whole}
    scores = {}
    for method in methods if whole else []:
        seeds = sorted(set.intersection(*(set(target.scores[method].values) for target in whole)))
        if seeds:
            scores[method] = Score(
                {s: statistics.fmean(target.scores[method].values[s] for target in whole) for s in seeds}
            )
    ratios = [target.gap_closed for target in whole if target.gap_closed is not None]
    parts = ("pi", "single", "full")
    return Overall(
        whole,
        len(targets) - len(whole),
        scores,
        means,
        closed(*(means[part] for part in parts)) if all(part in means for part in parts) else None,
        _seed_ratios(scores),
        statistics.fmean(ratios) if ratios else None,
        len(ratios),
    )


def _seed_ratios(scores: dict[str, Score]) -> Score | None:
    """Return the gap closed within each seed."""
    parts = ("pi", "single", "full")
    if any(part not in scores for part in parts):
        return None
    found = {}
    for seed in sorted(set.intersection(*(set(scores[part].values) for part in parts))):
        value = closed(*(scores[part].values[seed] for part in parts))
        if value is not None:
            found[seed] = value
    return Score(found) if found else None


def cost(manifests: Manifests) -> list[Stage]:
    """Add up the seconds of the manifests by family; work done side by side counts in full."""
    count: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    for artifact, manifest in manifests.items():
        family = artifact.partition("/")[0]
        family = "interpolations" if family == "sweeps" else family
        count[family] += 1
        seconds[family] += float(manifest.get("seconds") or 0.0)
        size[family] += sum(file["bytes"] for file in manifest["files"].values())
    names = {"interpolations": "interpolations and sweeps"}
    return [Stage(names.get(f, f), count[f], seconds[f], size[f]) for f in STAGES if count[f]]


# --- as Markdown ---------------------------------------------------------------------------------------------------


def percent(score: Score | None, mark: str = "") -> str:
    """Return ``84.2 ± 0.6`` (percent); no spread where there is one seed or all seeds are equal; ``–`` for None."""
    if score is None:
        return "–"
    spread = "" if math.isnan(score.std) or score.std == 0 else f" ± {100 * score.std:.1f}"
    return f"{mark}{100 * score.mean:.1f}{mark}{spread}"


def points(value: float | None) -> str:
    """Return a difference in points with its sign: ``+5.1``."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def share(value: float | None) -> str:
    """Return a fraction as ``41 %``."""
    return "–" if value is None else f"{100 * value:.0f}\u00a0%".replace("-", "−")


def markdown(store: Store) -> str:
    """Return the result table as Markdown: a row per target, then the averages; one line says how to read it."""
    targets = read_targets(store)
    if not targets:
        return "No results yet.\n"
    methods = [method for method in METHODS if any(method in target.scores for target in targets)]
    head = ["task", "shots", *(NAMES[method] for method in methods), "pi − single", "gap closed"]
    lines = [_line(head), _line(["---", "---:"] + ["---:"] * (len(methods) + 2))]
    for target in targets:
        cells = [percent(target.scores.get(m), "**" if m in target.best else "") for m in methods]
        gain = points(target.gain.mean if target.gain else None)
        lines.append(_line([_plain(target.task), target.shots, *cells, gain, share(target.gap_closed)]))
    counts = sorted({target.shots for target in targets}, key=shots_order)
    for shots in [*counts, ""] if len(counts) > 1 else counts:
        total = overall([target for target in targets if shots in ("", target.shots)])
        if total.targets:
            cells = [_average_cell(total, method) for method in methods]
            label = f"*mean of {len(total.targets)}*"
            lines.append(_line([label, shots or "all", *cells, points(total.gain), share(total.gap_closed)]))
    seeds = sorted({len(score.values) for target in targets for score in target.scores.values()})
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    note = (
        f"Percent on the test split, mean ± standard deviation over {many} seed{'' if seeds == [1] else 's'}; bold: "
        "best of the methods that see the same shots; gap closed: (pi − single) / (full data − single), of the means."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def _average_cell(total: Overall, method: str) -> str:
    """Return an average's cell: its spread only where seeds and targets are complete."""
    if method not in total.means:
        return "–"
    mark = "**" if method in total.best else ""
    score = total.scores.get(method)
    spread = percent(score).partition(" ± ")[2] if score else ""
    return f"{mark}{100 * total.means[method]:.1f}{mark}" + (f" ± {spread}" if spread else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Keep a name from being read as Markdown or HTML."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        text = text.replace(sign, instead)
    return " ".join(text.split())
