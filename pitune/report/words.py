"""What a study found, in plain sentences: the summary and the figures beside it."""

from __future__ import annotations

import statistics
from collections import Counter

from pitune.report.contents import Group, Trial, group_name
from pitune.report.scores import BASELINE, OURS, Average, TargetScores, same_shots, seed_counts, title
from pitune.report.similarities import GraphEdge, graph_columns, task_similarity
from pitune.report.tables import LEVEL, percent, plural, points, seeds_text, share, spread


def listed(names: list[str], most: int = 4) -> str:
    """Return ``a, b and c``, or the first few and how many more."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def headline(total: Average, targets: list[TargetScores]) -> list[str]:
    """Return the summary's sentences on how good the interpolated experts are."""
    if not targets:
        return ["There are no results yet: this page shows what the study has made so far."]
    gain = total.gain
    if gain is None:
        return ["The methods to compare, a single expert and the interpolated one, are not both there yet."]
    around = spread(total.gain_seeds)
    around = around and f"\u00a0±\u00a0{around}"
    way = "gains" if gain > 0 else "loses"
    change = f"{way} {percent(abs(gain))}{around} points" if abs(gain) > LEVEL else "gains nothing"
    sentences = [
        f"Interpolating the experts of its nearest tasks with its own, a target {change} over its single expert: "
        f"{percent(total.means[OURS])}\u00a0% instead of {percent(total.means[BASELINE])}\u00a0%, the mean of "
        f"{plural(len(total.targets), 'target')} and {seeds_text(targets)}."
    ]
    if total.gap_closed is not None:
        unsteady = spread(total.gap_closed_seeds, 0)
        unsteady = unsteady and f" (±\u00a0{unsteady} over seeds)"
        closes = f"That closes {share(total.gap_closed)}{unsteady}"
        sentences.append(f"{closes} of the gap to experts trained on all the data.")
    sentences.append(f"It is ahead on {wins(total)} of {plural(len(total.targets), 'target')}.")
    return [*sentences, _place(total)] if total.best else sentences


def wins(total: Average) -> int:
    """Return on how many targets the interpolated expert is ahead of the single one."""
    return sum(1 for target in total.targets if target.gain is not None and target.gain.mean > LEVEL)


def _place(total: Average) -> str:
    """Return where the interpolated experts stand, on average, among those that see the same shots."""
    others = sorted((m for m in same_shots() if m in total.means and m != OURS), key=lambda m: -total.means[m])
    lead = percent(abs(total.means[OURS] - total.means[others[0]]))
    if total.best == (OURS,):
        return f"On average it is the best of those that see the same shots, {lead} ahead of {title(others[0])}."
    if OURS in total.best:
        level = listed([title(method) for method in total.best if method != OURS])
        return f"On average it is as good as {level}; none that sees the same shots is better."
    return f"On average {title(others[0])}, which sees the same shots, is better by {lead}."


def shortfalls(total: Average, targets: list[TargetScores]) -> list[str]:
    """Return what fell short, or stands on little."""
    found = []
    behind = [(t, t.gain.mean) for t in total.targets if t.gain is not None and t.gain.mean < -LEVEL]
    if behind:
        behind.sort(key=lambda pair: pair[1])
        names = [f"{target.name} ({points(value)})" for target, value in behind]
        found.append(f"Worse than the single expert: {listed(names)}.")
    elif total.gain is not None:
        found.append("On no target is it worse than the single expert.")
    beaten = [t for t in total.targets if OURS in t.scores and t.best and not {OURS, BASELINE} & set(t.best)]
    if beaten:
        names = [f"{target.name} ({title(target.best[0])})" for target in beaten]
        found.append(f"Another method that sees the same shots is better on {listed(names)}.")
    if seed_counts(targets) == [1]:
        found.append("One seed only: nothing is known of the spread.")
    if total.left_out:
        found.append(f"{plural(total.left_out, 'target')} of {len(targets)} lack a method and are not in the averages.")
    return found


def helpers(edges: list[GraphEdge]) -> list[str]:
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


def neighbours(edges: list[GraphEdge], most: int = 3) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return each target's nearest sources, similarities averaged over seeds."""
    columns = graph_columns(edges, full=False)
    cells: dict[Group, dict[str, list[float]]] = {group: {} for group in columns}
    for edge in edges:
        if edge.target in cells and edge.source != edge.target[0]:
            cells[edge.target].setdefault(edge.source, []).append(edge.similarity)
    rows = []
    for group in columns:
        means = [(source, statistics.fmean(values)) for source, values in cells[group].items()]
        rows.append((group_name(group), sorted(means, key=lambda pair: -pair[1])[:most]))
    return rows
