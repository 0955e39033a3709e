"""What a study found, in plain sentences: the summary and the figures beside it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from pitune.methods import METHODS
from pitune.report.contents import Group, Manifests, Trial, group_name, split_slice
from pitune.report.controls import Verdict
from pitune.report.differences import DECIDING, Difference
from pitune.report.modalities import HARMS, HELPS, Crossing, Edge, Part
from pitune.report.numbers import between, ends, percent, plural, points, share, spread
from pitune.report.prediction import CONFIDENCE, RANDOM, Judgement, Occurrence, Row
from pitune.report.ranking import in_use
from pitune.report.scores import (
    ALONE,
    BASELINE,
    OURS,
    Average,
    TargetScores,
    compare,
    compare_tasks,
    methods_of,
    same_shots,
    seed_counts,
    title,
)
from pitune.report.similarities import GraphEdge, graph_columns, task_similarity
from pitune.report.tables import LEVEL, seeds_text
from pitune.report.transfer import Pair, gained

MOST = 4
"""So many are listed, or one fewer and how many more."""


def listed(names: list[str], most: int = MOST) -> str:
    """Return ``a, b and c``, or the first few and how many more."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def bounds(found: Difference | None, of: str = "slice") -> str:
    """Return ``95 % interval 0.4 to 2.9``, of how many slices where they are few; or why there is none."""
    if found is None or not found.has_interval:
        return f"no interval: {plural(found.slices if found else 0, of)}"
    few = f", of only {plural(found.slices, of)}" if found.slices < DECIDING else ""
    return f"95\u00a0% interval {between(found)}{few}"


def headline(total: Average, targets: list[TargetScores]) -> list[str]:
    """Return the summary's sentences on how good the interpolated experts are."""
    if not targets:
        return ["There are no results yet: this page shows what the study has made so far."]
    gain = total.gain
    if gain is None:
        return ["The methods to compare, a single expert and the interpolated one, are not both there yet."]
    change = f"{'gains' if gain > 0 else 'loses'} {percent(abs(gain))} points" if abs(gain) > LEVEL else "gains nothing"
    change += " over" if gain > 0 else " against"
    first, second = (OURS, BASELINE) if gain > 0 else (BASELINE, OURS)
    around = bounds(total.leads.get(BASELINE) if gain > 0 else compare(total.targets, first, second))
    sentences = [
        f"Interpolating the experts of its nearest tasks with its own, a target {change} its single expert "
        f"({around}): "
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
    first = others[0]
    lead = percent(abs(total.means[OURS] - total.means[first]))
    if total.best == (OURS,):
        around = _order(total.leads[first])
        return f"On average it is the best of those that see the same shots, {lead} ahead of {title(first)} ({around})."
    if OURS in total.best:
        level = listed([title(method) for method in total.best if method != OURS])
        return f"On average it is as good as {level}; none that sees the same shots is better."
    around = _order(compare(total.targets, first, OURS))
    return f"On average {title(first)}, which sees the same shots, is better by {lead} ({around})."


def _order(found: Difference | None) -> str:
    """Return a difference's interval, and whether it leaves the order open."""
    open_order = found is not None and found.has_interval and found.clear == 0
    return bounds(found) + (": which of the two is better is open" if open_order else "")


def shortfalls(total: Average, targets: list[TargetScores]) -> list[str]:
    """Return what fell short, or stands on little."""
    found = []
    behind = [(t, t.gain.mean) for t in total.targets if t.gain is not None and t.gain.mean < -LEVEL]
    if behind:
        behind.sort(key=lambda pair: pair[1])
        worst = _apart([(target, points(value), OURS, BASELINE) for target, value in behind])
        found.append(f"Worse than the single expert: {worst}.")
    elif total.gain is not None:
        found.append("On no target is it worse than the single expert.")
    beaten = [t for t in total.targets if OURS in t.scores and t.best and not {OURS, BASELINE} & set(t.best)]
    if beaten:
        lost = _apart([(target, _lost(target), target.best[0], OURS) for target in beaten])
        found.append(f"Another method that sees the same shots is better on {lost}.")
    if seed_counts(targets) == [1]:
        found.append("One seed only: nothing is known of the spread.")
    if total.left_out:
        found.append(f"{plural(total.left_out, 'target')} of {len(targets)} lack a method and are not in the averages.")
    for name in methods_of(total.targets):
        if name not in total.means:
            some = sum(name in target.scores for target in total.targets)
            found.append(f"{title(name)} is of {some} of the {len(total.targets)} targets only, and has no average.")
    return found


def _lost(target: TargetScores) -> str:
    """Return by how much the best method is ahead on a target."""
    best = target.best[0]
    return f"{title(best)} by {percent(target.scores[best].mean - target.scores[OURS].mean)}"


def _apart(differences: list[tuple[TargetScores, str, str, str]]) -> str:
    """List targets, each with what is said of it and the interval of ``first - second``, as far as they are shown."""
    shown = [
        f"{target.name} ({said}; {bounds(compare([target], first, second))})"
        for target, said, first, second in differences[:MOST]
    ]
    return listed([*shown, *(target.name for target, *_ in differences[MOST:])])


def controlled(found: Verdict | None, targets: list[TargetScores]) -> str:
    """Return one line on whether the gain is transfer; empty where no control has been scored."""
    if found is None:
        return ""
    apart = [f"{points(one.mean)} over {title(name)} ({bounds(one)})" for name, one in found.beyond.items()]
    over = [f"{points(found.gain.mean)} points over {title(BASELINE)} ({bounds(found.gain)})", *apart]
    tasks = plural(len({target.task for target in targets}), "task")
    numbers = f"{title(OURS)} is {listed(over)}, paired over {plural(found.gain.slices, 'slice')} of {tasks}"
    nearest, beyond = title(found.control), found.beyond[found.control].mean / (found.gain.mean or 1.0)
    if found.kind == "transfer":
        what = "The gain is transfer" if beyond >= 0.5 else "A part of the gain is transfer"
        part = "all" if beyond > 0.995 else share(beyond)
        return f"{what}: {numbers}; {part} of it goes beyond {nearest}, the better control."
    if found.kind == "regularisation":
        return (
            f"The gain is regularisation rather than transfer: {nearest} reaches {share(1 - beyond)} of it; {numbers}."
        )
    why = {
        "slices": f"fewer than {DECIDING} slices prove nothing",
        "gain": f"{title(OURS)} has no clear gain to explain",
        "controls": "not every control has been scored",
        "overlap": f"{nearest} may reach much of the gain, or little",
    }[found.why]
    return f"Transfer or regularisation? Undecided, {why}: {numbers}."


def overlapping(manifests: Manifests) -> list[str]:
    """Return a sentence on controls that took sources which the interpolation has too, for want of others."""
    asked = [manifest for manifest in manifests.values() if "shared" in manifest and not manifest["randomized"]]
    some = [manifest for manifest in asked if manifest["shared"]]
    whole = sum(1 for manifest in some if len(manifest["shared"]) >= manifest["top_k"])
    if not some:
        return []
    all_of = f", all of them on {whole}" if whole else ""
    return [
        f"Sources are few: on {len(some)} of {plural(len(asked), 'slice')} the farthest are in part those that "
        f"{title(OURS)} mixes{all_of}; that control says less there."
    ]


def zero_shot(total: Average) -> list[str]:
    """Return a sentence on what experts of other tasks bring where nothing of a task is seen but its label texts."""
    rows = [m for m in total.means if METHODS[m].sees == "nothing" and m != ALONE]
    leads = {method: compare_tasks(total.targets, method, ALONE) for method in rows}
    apart = [f"{title(m)} {points(one.mean)} points ({bounds(one, 'task')})" for m, one in leads.items() if one]
    if not apart:
        return []
    tasks = plural(len({target.task for target in total.targets}), "task")
    return [
        f"With no data of the target, experts of other tasks against {title(ALONE)}, paired over {tasks}: "
        f"{listed(apart, most=len(apart))}."
    ]


def transferred(pairs: list[Pair]) -> list[str]:
    """Return sentences on what sources bring on average, and on how many pairs."""
    others = [pair for pair in pairs if not pair.is_own]
    found = gained(pairs)
    if found is None:
        return []
    better = sum(1 for pair in others if pair.score > pair.single + LEVEL)
    way, one = ("above", found) if found.mean > 0 else ("below", found.turned())
    return [
        f"Started from an expert of another task and tuned on its shots, a target is on average {percent(one.mean)} "
        f"points {way} its single expert ({bounds(one)}, paired over {plural(one.slices, 'target slice')}).",
        f"Of {plural(len(others), 'pair')}, {better} gain.",
    ]


def crossed(found: Crossing) -> list[str]:
    """Return sentences on pairs across modalities, beside those within, and name the clearest edges."""
    if found.across is None:
        return []
    said = [f"Across modalities {_part(found.across)}."]
    if found.within is not None and found.apart is not None:
        way, one = ("more", found.apart) if found.apart.mean > 0 else ("less", found.apart.turned())
        said.append(
            f"Within a modality {_part(found.within)}. On the same target, sources of another modality bring "
            f"{percent(one.mean)} points {way} ({bounds(one)})."
        )
    decided = [edge for edge in found.edges if edge.gain is not None and edge.gain.low is not None]
    if decided:
        counts = Counter(edge.verdict for edge in decided)
        said.append(
            f"Taken one by one, by their intervals over {found.over}, {counts[HELPS]} of the "
            f"{plural(len(decided), 'edge')} across modalities help, {counts[HARMS]} harm, and the rest are undecided; "
            f"by chance alone it would be about {(1 - CONFIDENCE) / 2 * len(decided):.0f} of each."
        )
    for verdict, word in ((HELPS, "help"), (HARMS, "harm")):
        some = [edge for edge in decided if edge.verdict == verdict]
        clear = sorted(some, key=lambda edge: -abs(_gain(edge)))[:3]
        if clear:
            said.append(f"Those that {word} most: {'; '.join(map(_named, clear))}.")
    return said


def _part(found: Part) -> str:
    return (
        f"{found.better} of {plural(found.pairs, 'pair')} gain; their mean is {points(found.mean.mean)} points "
        f"({bounds(found.mean)}, paired over {plural(found.mean.slices, 'target slice')})"
    )


def _gain(edge: Edge) -> float:
    return edge.gain.mean if edge.gain else 0.0


def _named(edge: Edge) -> str:
    """Return ``movie (text) → stamps@16 (+2.1)``."""
    return f"{edge.source} ({edge.modality}) → {group_name(edge.target)} ({points(_gain(edge))})"


def predicted(judgements: list[Judgement], graph: Sequence[Row]) -> list[str]:
    """Return a sentence on how well the similarity in use ranks the sources, beside a random ranking."""
    used = next((one for one in judgements if one.similarity == in_use(graph)), None)
    chance = next((one for one in judgements if one.similarity == RANDOM), None)
    if used is None or chance is None or "regret@1" not in used.values:
        return []
    lost, random, ahead = used.values["regret@1"], chance.values["regret@1"], used.ahead["regret@1"]
    if ahead.low is None or ahead.high is None:
        said = f"no interval: {plural(len(ahead.seeds), 'seed')}"
    else:
        said = f"95\u00a0% interval {ends(ahead.low, ahead.high)} over {plural(len(ahead.seeds), 'seed')}"
    return [
        f"The nearest source, by the similarity in use, is {percent(lost.mean)} points below the best one, a source "
        f"taken at random {percent(random.mean)}: the similarity is worth {points(ahead.mean)} points ({said})."
    ]


def hubs(found: list[Occurrence], k: int) -> list[str]:
    """Return a sentence on the source that is among the nearest most often."""
    if not found or found[0].share <= found[0].chance:
        return []
    first = found[0]
    many = f"{first.near} of the {plural(first.targets, 'target slice')} of other tasks"
    odds = f"{share(first.share)}, by chance {share(first.chance)}"
    return [f"{split_slice(first.source)[0]} is among the {k} nearest of {many}: {odds}."]


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
