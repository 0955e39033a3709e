"""The scores behind the report: over seeds, over targets, the gap closed, the best method.

Averages are taken over seeds first and over targets second, every target (a task at a shot count) counting once. The
spread is the sample standard deviation over seeds; of an average over targets, it is that of the per-seed averages.
What methods there are, and which may be compared, the registry says.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pitune.methods import METHODS
from pitune.report.contents import Group, group_name, group_order, shots_order
from pitune.report.differences import Difference, difference
from pitune.store import Store
from pitune.tasks.task import Family

BASELINE, OURS = "single", "pi"
"""The study's question: what the second method gains over the first."""
ALONE = "zero_shot"
"""The backbone alone, which experts of other tasks are held against where nothing of a target is seen."""
EVERY_FAMILY = set(get_args(Family))
FULL = "full"
"""The shots, as text, of a target that has all its task's data."""


def title(method: str) -> str:
    """Return how a method is called before people."""
    return METHODS[method].title


def same_shots() -> tuple[str, ...]:
    """Return the methods that see the target's shots and nothing else of it: those that are ranked, no controls."""
    return tuple(name for name, method in METHODS.items() if method.sees == "shots" and not method.control)


def ceiling() -> str:
    """Return the first method that sees all the data, to whose score a gap is measured; empty where there is none."""
    return next((name for name, method in METHODS.items() if method.sees == "all"), "")


def question() -> str:
    """Return ``pi − single``."""
    return f"{title(OURS)} − {title(BASELINE)}"


def gap_ratio() -> str:
    """Return how the gap closed is reckoned: ``(pi − single) / (full data − single)``."""
    above = METHODS[ceiling()].title if ceiling() else "ceiling"
    return f"({question()}) / ({above} − {title(BASELINE)})"


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


Scores = dict[str, Score]
"""Each method's score, in the order of the registry."""


@dataclass(frozen=True)
class TargetScores:
    """What every method scored on a task at a shot count, all seeds."""

    group: Group
    metric: str
    examples: int
    scores: Scores

    @property
    def task(self) -> str:
        """The task's name."""
        return self.group[0]

    @property
    def shots(self) -> str:
        """The shots per class as text."""
        return self.group[1]

    @property
    def name(self) -> str:
        """``movie@16``."""
        return group_name(self.group)

    @property
    def gain(self) -> Score | None:
        """``OURS - BASELINE``, seed by seed; None where no seed has both."""
        return by_seed(self.scores, OURS, BASELINE)

    @property
    def gap_closed(self) -> float | None:
        """The gap closed by the means over the seeds that all three methods have; None where there is no gap."""
        three = {} if self.shots == FULL else _common_seeds(self.scores)
        return closed({method: score.mean for method, score in three.items()})

    @property
    def best(self) -> tuple[str, ...]:
        """The methods with the highest mean among those that see the same shots."""
        return best_methods({method: score.mean for method, score in self.scores.items()})


@dataclass(frozen=True)
class Average:
    """Averages over targets: all that have every method which any target has, and which every target may have.

    Attributes:
        targets: those averaged.
        left_out: how many were not, for want of a method.
    """

    targets: Sequence[TargetScores]
    left_out: int = 0

    @functools.cached_property
    def methods(self) -> list[str]:
        """The methods that all of the targets have, and that have a mean therefore."""
        return [name for name in methods_of(self.targets) if all(name in target.scores for target in self.targets)]

    @functools.cached_property
    def scores(self) -> Scores:
        """Each method's mean over targets, seed by seed; seeds that every target has."""
        found = {}
        for method in self.methods:
            of = [target.scores[method].values for target in self.targets]
            seeds = sorted(set.intersection(*(set(values) for values in of)))
            if seeds:
                found[method] = Score({seed: statistics.fmean(values[seed] for values in of) for seed in seeds})
        return found

    @functools.cached_property
    def means(self) -> dict[str, float]:
        """Each method's mean over targets of the means over their seeds."""
        return {
            method: statistics.fmean(target.scores[method].mean for target in self.targets) for method in self.methods
        }

    @functools.cached_property
    def leads(self) -> dict[str, Difference | None]:
        """What ``OURS`` has over each other method that sees the shots, paired over slices; None where no slice has."""
        return {
            method: compare(self.targets, OURS, method)
            for method in methods_of(self.targets)
            if method != OURS and METHODS[method].sees == "shots"
        }

    @functools.cached_property
    def short(self) -> Average:
        """Those that are short of data: a full target has no gap to an expert of all the data."""
        return Average([target for target in self.targets if target.shots != FULL])

    @property
    def gain(self) -> float | None:
        """Mean of ``OURS - BASELINE`` over targets."""
        return self.means[OURS] - self.means[BASELINE] if {OURS, BASELINE} <= self.means.keys() else None

    @property
    def gain_seeds(self) -> Score | None:
        """The same within each seed."""
        return by_seed(self.scores, OURS, BASELINE)

    @property
    def gap_closed(self) -> float | None:
        """The headline: the ratio of the mean gaps, not the mean of the targets' ratios; see :attr:`short`."""
        return closed(self.short.means)

    @property
    def gap_closed_seeds(self) -> Score | None:
        """The same within each seed."""
        three = _common_seeds(self.short.scores)
        found = {}
        for seed in next(iter(three.values())).values if three else ():
            ratio = closed({method: score.values[seed] for method, score in three.items()})
            if ratio is not None:
                found[seed] = ratio
        return Score(found) if found else None

    @property
    def ratios(self) -> list[float]:
        """The targets' own ratios, of those that have one; small gaps make them unsteady."""
        return [target.gap_closed for target in self.targets if target.gap_closed is not None]

    @property
    def best(self) -> tuple[str, ...]:
        """The methods with the highest mean among those that see the same shots."""
        return best_methods(self.means)

    @property
    def worst(self) -> tuple[TargetScores, float] | None:
        """The target with the least ``OURS - BASELINE``, and that difference (a fraction, not points)."""
        gains = [(target, target.gain.mean) for target in self.targets if target.gain is not None]
        return min(gains, key=lambda pair: pair[1]) if gains else None


def average(targets: Sequence[TargetScores]) -> Average:
    """Average over those of ``targets`` that have every method, but for what tasks of some family never have."""
    methods = [name for name in methods_of(targets) if set(METHODS[name].families) == EVERY_FAMILY]
    whole = [target for target in targets if all(method in target.scores for method in methods)]
    return Average(whole, len(targets) - len(whole))


def methods_of(targets: Sequence[TargetScores]) -> list[str]:
    """Return the methods that any target has a score of, in the order of the table."""
    return [method for method in METHODS if any(method in target.scores for target in targets)]


def seed_counts(targets: Sequence[TargetScores]) -> list[int]:
    """Return how many seeds the scores stand on, each number once, the least first."""
    return sorted({len(score.values) for target in targets for score in target.scores.values()})


def by_slice(targets: Sequence[TargetScores], method: str) -> dict[str, float]:
    """Return what a method scored on each slice, by its name; those that it has not scored are not there."""
    scored = [(target.name, target.scores[method].values) for target in targets if method in target.scores]
    return {f"{name}#{seed}": value for name, values in scored for seed, value in values.items()}


def compare(targets: Sequence[TargetScores], first: str, second: str) -> Difference | None:
    """Return ``first - second``, paired over the slices of ``targets``; None where no slice has both."""
    return difference(by_slice(targets, first), by_slice(targets, second))


def compare_tasks(targets: Sequence[TargetScores], first: str, second: str) -> Difference | None:
    """Return ``first - second``, paired over tasks, for methods that all targets of a task share the score of."""
    one, two = (
        {target.task: target.scores[method].mean for target in targets if method in target.scores}
        for method in (first, second)
    )
    return difference(one, two)


def by_seed(scores: Scores, first: str, second: str) -> Score | None:
    """Return ``first - second`` over the seeds that both have."""
    if first not in scores or second not in scores:
        return None
    a, b = scores[first].values, scores[second].values
    values = {seed: a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}
    return Score(values) if values else None


def closed(means: Mapping[str, float]) -> float | None:
    """Return the part of the gap between baseline and ceiling that is closed; None where there is no such gap."""
    if not {OURS, BASELINE, ceiling()} <= means.keys():
        return None
    gap = means[ceiling()] - means[BASELINE]
    return (means[OURS] - means[BASELINE]) / gap if gap > 1e-9 else None


def _common_seeds(scores: Scores) -> Scores:
    """Return the three scores of the gap, cut to the seeds that all of them have; empty where there are none."""
    three = [scores[method] for method in (OURS, BASELINE, ceiling()) if method in scores]
    seeds = sorted(set.intersection(*(set(score.values) for score in three))) if len(three) == 3 else []
    if not seeds:
        return {}
    return {
        method: Score({seed: score.values[seed] for seed in seeds})
        for method, score in zip((OURS, BASELINE, ceiling()), three, strict=True)
    }


def best_methods(means: Mapping[str, float]) -> tuple[str, ...]:
    """Return the methods that see the shots with the highest mean, to the decimal shown; none of only one."""
    shown = {method: round(100 * means[method], 1) for method in same_shots() if method in means}
    return tuple(method for method in shown if shown[method] == max(shown.values())) if len(shown) > 1 else ()


def read_targets(store: Store) -> list[TargetScores]:
    """Return the scores of ``results.parquet``, by shots and task; empty where there are none yet.

    Where a task has several metrics, its first row's counts. Methods that are not registered are passed over.
    """
    if store.manifest("results.parquet") is None:
        return []
    metrics: dict[str, str] = {}
    examples: dict[Group, int] = {}
    values: dict[Group, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in store.table("results.parquet").to_pylist():
        metric = metrics.setdefault(row["task"], row["metric"])
        if row["metric"] == metric and row["value"] is not None and math.isfinite(row["value"]):
            group = (row["task"], str(row["shots"]))
            values[group][row["method"]][int(row["seed"])] = float(row["value"])
            examples[group] = int(row["examples"] or 0)
    return [
        TargetScores(
            group,
            metrics[group[0]],
            examples[group],
            {method: Score(values[group][method]) for method in METHODS if method in values[group]},
        )
        for group in sorted(values, key=lambda group: (shots_order(group[1]), group_order(group)))
    ]
