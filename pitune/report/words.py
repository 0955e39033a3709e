"""What a study found, in plain sentences: the summary and the figures beside it."""

from __future__ import annotations

import math
from collections import Counter

from pitune.report.contents import Edge, Trial, graph_columns, group_name, task_similarity
from pitune.report.tables import NAMES, SAME_SHOTS, Overall, Score, Target, percent, points, share

LEVEL = 0.0005
"""Differences below this, half a tenth of a point, are called level."""


def plural(count: int, word: str) -> str:
    """Return ``1 seed``, ``3 seeds``."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def listed(names: list[str], most: int = 4) -> str:
    """Return ``a, b and c``, or the first few and how many more."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def seeds_text(targets: list[Target]) -> str:
    """Return how many seeds the targets have: ``3 seeds``, ``1 to 3 seeds``."""
    counts = sorted({len(score.values) for target in targets for score in target.scores.values()})
    return plural(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def headline(total: Overall, targets: list[Target]) -> list[str]:
    """Return the summary's sentences on how good the interpolated experts are."""
    if not targets:
        return ["There are no results yet: this page shows what the study has made so far."]
    gain = total.gain
    if gain is None:
        return ["The methods to compare, a single expert and the interpolated one, are not both there yet."]
    count = len(total.targets)
    seeds = total.gain_seeds
    spread = "" if seeds is None or math.isnan(seeds.std) else f"\u00a0±\u00a0{100 * seeds.std:.1f}"
    change = (
        "gains nothing" if abs(gain) <= LEVEL else f"{'gains' if gain > 0 else 'loses'} {points(gain)}{spread} points"
    )
    sentences = [
        f"Interpolating the experts of its nearest tasks with its own, a target {change} "
        f"over its single expert: {percent(Score({0: total.means['pi']}))}\u00a0% instead of "
        f"{percent(Score({0: total.means['single']}))}\u00a0%, the mean of {plural(count, 'target')} "
        f"and {seeds_text(targets)}."
    ]
    if total.gap_closed is not None:
        unsteady = total.gap_closed_seeds
        around = (
            "" if unsteady is None or math.isnan(unsteady.std) else f" (±\u00a0{100 * unsteady.std:.0f} over seeds)"
        )
        sentences.append(
            f"That closes {share(total.gap_closed)}{around} of the gap to experts trained on all the data."
        )
    wins = [target for target in total.targets if target.gain is not None and target.gain.mean > LEVEL]
    sentences.append(f"It is ahead on {len(wins)} of {plural(count, 'target')}.")
    if total.best:
        sentences.append(_place(total))
    return sentences


def _place(total: Overall) -> str:
    """Return where the interpolated experts stand, on average, among those that see the same shots."""
    others = sorted((m for m in SAME_SHOTS if m in total.means and m != "pi"), key=lambda m: -total.means[m])
    lead = f"{100 * abs(total.means['pi'] - total.means[others[0]]):.1f}"
    if total.best == ("pi",):
        return f"On average it is the best of those that see the same shots, {lead} ahead of {NAMES[others[0]]}."
    if "pi" in total.best:
        level = listed([NAMES[method] for method in total.best if method != "pi"])
        return f"On average it is as good as {level}; none that sees the same shots is better."
    return f"On average {NAMES[others[0]]}, which sees the same shots, is better by {lead}."


def shortfalls(total: Overall, targets: list[Target]) -> list[str]:
    """Return what fell short, or stands on little."""
    found = []
    behind = [(t, t.gain.mean) for t in total.targets if t.gain is not None and t.gain.mean < -LEVEL]
    if behind:
        behind.sort(key=lambda pair: pair[1])
        names = [f"{group_name((t.task, t.shots))} ({points(value)})" for t, value in behind]
        found.append(f"Worse than the single expert: {listed(names)}.")
    elif total.gain is not None:
        found.append("On no target is it worse than the single expert.")
    beaten = [t for t in total.targets if "pi" in t.scores and t.best and not {"pi", "single"} & set(t.best)]
    if beaten:
        names = [f"{group_name((t.task, t.shots))} ({NAMES[t.best[0]]})" for t in beaten]
        found.append(f"Another way to use the neighbours is better on {listed(names)}.")
    if targets and all(len(score.values) == 1 for target in targets for score in target.scores.values()):
        found.append("One seed only: nothing is known of the spread.")
    if total.left_out:
        found.append(f"{plural(total.left_out, 'target')} of {len(targets)} lack a method and are not in the averages.")
    return found


def helpers(edges: list[Edge]) -> list[str]:
    """Return a sentence on which tasks are near each other."""
    pairs = task_similarity(edges)
    if not pairs:
        return []
    best = sorted(pairs, key=lambda pair: -pairs[pair])[: 3 if len(pairs) > 3 else 1]
    names = [f"{a} and {b} ({pairs[a, b]:.2f})" for a, b in best]
    far = min(pairs, key=lambda pair: pairs[pair])
    text = f"The tasks nearest to each other, by the Fisher information of their experts, are {'; '.join(names)}"
    return [text + (f"; the farthest apart are {far[0]} and {far[1]} ({pairs[far]:.2f})." if len(pairs) > 1 else ".")]


def own_choice(trials: list[Trial]) -> str:
    """Return a sentence on which own expert was chosen how often; empty where there was no choice."""
    tried = sorted({trial.own for trial in trials}, reverse=True)
    chosen = Counter(trial.own for trial in trials if trial.chosen)
    if len(tried) < 2 or not chosen:
        return ""
    counts = listed([f"{own} in {chosen[own]}" for own in tried])
    return f"Of {plural(chosen.total(), 'choice')}, one a target and seed, the own expert is {counts}."


def neighbours(edges: list[Edge], most: int = 3) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return each target's nearest sources, similarities averaged over seeds."""
    rows = []
    for group in graph_columns(edges, full=False):
        cells: dict[str, list[float]] = {}
        for edge in edges:
            if edge.target == group and edge.source != group[0]:
                cells.setdefault(edge.source, []).append(edge.similarity)
        means = sorted(((source, sum(v) / len(v)) for source, v in cells.items()), key=lambda pair: -pair[1])
        rows.append((group_name(group), means[:most]))
    return rows
