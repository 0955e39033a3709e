"""Could the sources be ranked better? Corrections and sums of the similarities, beside the measured transfer.

    python benchmarks/similarities.py docs/results/twenty_tasks
    python benchmarks/similarities.py docs/results/twenty_tasks --study studies/twenty_tasks

Reads the folder's ``graph.parquet`` and ``transfer.parquet``, of one shot count and seed. Every way is judged as the
report judges a similarity (``pitune/report/prediction.py``), on the targets of the development half
(``benchmarks/stacking.py``) and then on the sealed ones: Spearman and regrets are means over targets, hubs the skewness
of how often a source is among the three nearest of all targets. Nothing is trained.

With the study's predictions it also says how well the measured matrix agrees with itself: the Spearman of its scores on
one half of a target's test examples and on the other, over 50 halvings, and what that makes of whole test sets
(Spearman-Brown). No similarity can be expected to rank better than the root of that; what the draw of the shots and the
order of training add to the noise is not in it.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats
from stacking import is_sealed

from pitune.report.prediction import Row, fit, occurrence, similarities, skewness
from pitune.tasks.metrics import METRICS

Matrix = NDArray[np.float64]
"""(targets, sources), NaN where both are of one task."""
HALVINGS = 50
SUMMED = ("empirical_cosine_per_tensor", "weights_cosine", "features_cosine", "labels_cosine")


def double_centred(near: Matrix) -> Matrix:
    """Take off what a target has in common with all sources, and then a source with all targets."""
    apart = near - np.nanmean(near, 1, keepdims=True)
    centred: Matrix = apart - np.nanmean(apart, 0, keepdims=True)
    return centred


def mutual_proximity(near: Matrix) -> Matrix:
    """Return how likely both are nearer to each other than to others, by counting (Schnitzer et al. 2012)."""
    found = np.full_like(near, np.nan)
    for row, column in np.argwhere(~np.isnan(near)):
        value = near[row, column]
        nearer = [np.nanmean(np.where(np.isnan(one), np.nan, one < value)) for one in (near[row], near[:, column])]
        found[row, column] = np.prod(nearer)
    return found


def standard(near: Matrix) -> Matrix:
    """Return each target's similarities in standard deviations from their mean."""
    scores: Matrix = (near - np.nanmean(near, 1, keepdims=True)) / np.nanstd(near, 1, keepdims=True)
    return scores


class Judge:
    """Judges similarities by a measured matrix.

    Args:
        graph: rows of ``graph.parquet``.
        transfer: rows of ``transfer.parquet``, one for each source and target slice.
    """

    def __init__(self, graph: Sequence[Row], transfer: Sequence[Row]) -> None:
        self.targets = sorted({row["slice"] for row in transfer})
        self.sources = sorted({row["source"] for row in transfer})
        self._scores = self._matrix(transfer, "slice", "score")
        self.columns = {name: self._matrix(graph, "target", name) for name in similarities(graph)}

    def _matrix(self, rows: Sequence[Row], target: str, value: str) -> Matrix:
        held = {(row[target], row["source"]): row[value] for row in rows}
        return np.array(
            [
                [np.nan if one.split("@")[0] == source.split("@")[0] else held[one, source] for source in self.sources]
                for one in self.targets
            ]
        )

    def show(self, name: str, near: Matrix) -> None:
        """Print how a similarity fares on both halves, and how skewed it is."""
        print(f"{name}  {self._half(near, False)}  {self._half(near, True)}  {self._hubs(near):.1f}")

    def _half(self, near: Matrix, sealed: bool) -> str:
        found = []
        for row, target in enumerate(self.targets):
            if is_sealed(target.partition("@")[0]) == sealed:
                known = ~np.isnan(near[row])
                found.append(fit(near[row][known], self._scores[row][known]))
        spearman = np.nanmean([one["spearman"] for one in found])
        return f"{spearman:+.2f}  " + "  ".join(
            f"{100 * np.mean([one[name] for one in found]):.1f}" for name in ("regret@1", "regret@3")
        )

    def _hubs(self, near: Matrix) -> float:
        rows = [
            {"target": target, "source": source, "similarity": near[row, column]}
            for row, target in enumerate(self.targets)
            for column, source in enumerate(self.sources)
            if not np.isnan(near[row, column])
        ]
        return skewness(occurrence(rows))


def ways(columns: dict[str, Matrix]) -> Iterator[tuple[str, Matrix]]:
    """Yield every similarity as it is, corrected in two ways, and sums of several."""
    corrections: dict[str, Callable[[Matrix], Matrix]] = {
        "double-centred": double_centred,
        "mutual proximity": mutual_proximity,
    }
    for name, near in columns.items():
        yield name, near
        if not name.endswith("csls"):
            yield from ((f"{name}, {how}", correct(near)) for how, correct in corrections.items())
    for several in (2, 3, 4):
        for names in itertools.combinations([name for name in SUMMED if name in columns], several):
            yield " + ".join(names), np.sum([standard(columns[name]) for name in names], 0)


def agreement(study: Path, rows: Sequence[Row]) -> float:
    """Return the mean Spearman of a target's scores (its rows) by random halves of its test examples."""
    tables = [pq.read_table(study / row["prediction"]) for row in rows]
    labels, predicted = np.array(tables[0]["label"]), np.array([np.array(table["prediction"]) for table in tables])
    metric, random = METRICS[rows[0]["metric"]], np.random.default_rng(0)
    found = []
    for _ in range(HALVINGS):
        order = random.permutation(len(labels))
        halves = (order[: len(order) // 2], order[len(order) // 2 :])
        scores = [[metric(labels[half], one[half], []) for one in predicted] for half in halves]
        found.append(stats.spearmanr(*scores).statistic)
    return float(np.nanmean(found))


def show_agreement(study: Path, transfer: Sequence[Row]) -> None:
    """Print how well the matrix agrees with itself, on both halves of the targets."""
    rows = defaultdict(list)
    for row in transfer:
        if row["source"].split("@")[0] != row["target"]:
            rows[row["target"]].append(row)
    halved = {target: agreement(study, held) for target, held in sorted(rows.items())}
    for half, sealed in (("development", False), ("sealed", True)):
        found = np.mean([value for target, value in halved.items() if is_sealed(target) == sealed])
        whole = 2 * found / (1 + found)
        print(f"{half}: halves {found:.2f}, whole {whole:.2f}, at most {whole**0.5:.2f}")


def main() -> None:
    """Print a line for every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", type=Path)
    given = parser.parse_args()
    graph, transfer = (pq.read_table(given.folder / f"{name}.parquet").to_pylist() for name in ("graph", "transfer"))
    judge = Judge(graph, transfer)
    print("similarity  development: Spearman  regret@1  regret@3  sealed: Spearman  regret@1  regret@3  hubs")
    for name, near in ways(judge.columns):
        judge.show(name, near)
    if given.study:
        show_agreement(given.study, transfer)


if __name__ == "__main__":
    main()
