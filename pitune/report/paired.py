"""How sure a gain is that was measured on few seeds: by the test examples, on which the two experts are paired.

The jackknife by parts (Tukey 1958) serves any metric, also those that are no mean over examples, as F1. It says how far
the gain would move with other test examples, and nothing of other seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from pitune.report.contents import Group, Manifests, split_slice
from pitune.report.prediction import Row, estimate
from pitune.store import Store
from pitune.tasks.metrics import METRICS, OF_SEVERAL

PARTS = 20
"""Test examples are left out a part at a time."""


def reaches(store: Store, manifests: Manifests, rows: Iterable[Row]) -> dict[tuple[str, Group], float]:
    """Return how far the 95 % interval of a gain reaches to either side, a fraction, by source and target.

    Args:
        store: the study's.
        manifests: of what is there.
        rows: of ``transfer.parquet``; those without predictions of both experts, or of too few examples, are left out.
    """
    known: dict[str, list[float]] = {}

    def scores(artifact: str, metric: str) -> list[float]:
        if artifact not in known:
            known[artifact] = _without_parts(store, artifact, metric)
        return known[artifact]

    found: dict[tuple[str, Group], list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        artifacts = [str(row.get(column)) for column in ("prediction", "single_prediction")]
        if all(artifact in manifests for artifact in artifacts):
            pair, single = (scores(artifact, row["metric"]) for artifact in artifacts)
            edge = split_slice(row["source"])[0], (row["target"], str(row["shots"]))
            gains = [one - other for one, other in zip(pair, single, strict=True)]
            found[edge] += [(part, PARTS * gains[0] - (PARTS - 1) * gain) for part, gain in enumerate(gains[1:])]
    some = {edge: estimate(values) for edge, values in found.items()}
    return {
        edge: (one.high - one.low) / 2
        for edge, one in some.items()
        if one is not None and one.low is not None and one.high is not None
    }


def _without_parts(store: Store, artifact: str, metric: str) -> list[float]:
    """Return the score of predictions, and with each part left out; nothing but the score for too few examples."""
    table = store.table(artifact, columns=["key", "label", "prediction", "score"]).sort_by("key").to_pydict()
    labels, said, sure = (np.fromiter(table[name], dtype=object) for name in ("label", "prediction", "score"))
    if metric not in OF_SEVERAL:  # numbers are compared faster than texts
        _, codes = np.unique([*labels, *said], return_inverse=True)
        (labels, said), sure = codes.reshape(2, -1), sure.astype(np.float64)
    parts = np.arange(len(labels)) % PARTS
    kept = [parts != part for part in range(PARTS)] if len(labels) >= 2 * PARTS else []
    return [METRICS[metric](labels[one], said[one], sure[one]) for one in (np.full(len(labels), True), *kept)]
