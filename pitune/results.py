"""The study's tables: which examples every slice drew, and what every method scored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pitune.errors import PituneError
from pitune.store import Job, Manifest, Store, table_bytes
from pitune.tasks.metrics import METRICS
from pitune.tasks.task import Slice
from pitune.training.choice import spent

if TYPE_CHECKING:
    from pitune.materials import Materials

RESULTS, TRANSFER = "results.parquet", "transfer.parquet"
PAIRS = "transfer"
"""Where the pairs of the transfer matrix lie, and what people see their stage called."""
COMMON = "common"
"""What stands for a source where the target's own expert, from the common start, is scored beside its pairs."""
COLUMNS = (
    *("method", "task", "shots", "seed", "slice", "metric", "value", "examples"),
    *("seconds", "trials", "steps", "prediction"),
)
"""The columns of the table of all scores."""


@dataclass(frozen=True)
class SliceJob(Job):
    """A slice whose examples are to be written down."""

    slice: Slice


@dataclass(frozen=True)
class ResultsJob(Job):
    """The scores to gather: of each target and method, and the predictions (an artifact) that a score is made from."""

    rows: tuple[tuple[Slice, str, str], ...]


def write_slice(materials: Materials, job: SliceJob) -> None:
    """Write down which examples a slice drew."""
    task, data = materials.task(job.slice.task), materials.data(job.slice)
    rows = [
        {
            "key": example.key,
            "role": role,
            "label": materials.objective.text(task, materials.objective.target(task, example)),
        }
        for role in ("train", "validation")
        for example in getattr(data, role)
    ]
    materials.store.commit(job.artifacts[0], {"": table_bytes(rows)}, job.fingerprint, inputs=job.inputs)


def write_results(materials: Materials, job: ResultsJob) -> None:
    """Gather every score into ``results.parquet``.

    Raises:
        PituneError: a prediction is missing.
    """
    catalogue, root = materials.store.catalogue(), materials.store.root
    scored: dict[str, dict[str, object]] = {}
    for _, _, prediction in job.rows:
        if prediction not in scored:
            manifest = score_of(catalogue, prediction, root)
            took = spent(catalogue.get(manifest["expert"], {}))  # making the expert, all its trials
            scored[prediction] = {
                "metric": manifest["metric"],
                "value": manifest["value"],
                "examples": manifest["examples"],
                **took._asdict(),
                "prediction": prediction,
            }
    rows = []
    for target, method, prediction in job.rows:
        of = {"method": method, "task": target.task, "shots": target.shots_text, "seed": target.seed}
        row = {**of, "slice": str(target), **scored[prediction]}
        rows.append({column: row[column] for column in COLUMNS})
    materials.store.commit(RESULTS, {"": table_bytes(rows)}, job.fingerprint, inputs=job.inputs)


def score_of(catalogue: Mapping[str, Manifest], prediction: str, root: str) -> Manifest:
    """Return the manifest of predictions (an artifact), which has their ``metric``, ``value`` and ``examples``.

    Raises:
        PituneError: they are missing in the study at ``root``.
    """
    if prediction not in catalogue:
        raise PituneError(f"{root}/{prediction}: is missing; run the study again")
    return catalogue[prediction]


def counted_again(store: Store) -> Callable[[str, str], float]:
    """Return what gives the value of predictions (an artifact) by a metric, from their rows; each is read once."""

    @functools.cache
    def value(prediction: str, metric: str) -> float:
        table = store.table(prediction).to_pydict()
        return METRICS[metric](table["label"], table["prediction"])

    return value


def wrong_scores(store: Store) -> list[str]:
    """Return one line per row of ``results.parquet`` that its predictions do not bear out."""
    wrong = []
    value = counted_again(store)
    rows = store.table(RESULTS).to_pylist() if store.manifest(RESULTS) else []
    if rows and "prediction" not in rows[0]:
        raise PituneError(f"{store.root}/{RESULTS}: has no column prediction, as older ones; run the study again")
    for row in rows:
        artifact = row["prediction"]
        right = value(artifact, row["metric"])
        if abs(right - row["value"]) > 1e-9:
            wrong.append(f"{RESULTS}: {row['slice']} {row['method']} is {row['value']}, {artifact} gives {right}")
    return wrong
