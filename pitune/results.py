"""The study's tables: what each task is, which examples every slice drew, and what every method scored."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pitune.errors import PituneError
from pitune.store import Job, Manifest, Store, table_bytes
from pitune.tasks.metrics import METRICS
from pitune.tasks.task import Example, Slice, spelled
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
SHOWN = 8
"""So many test examples of a task its card shows: few enough that a report of twenty tasks stays small."""
SIDE = 96
"""Pixels of a shown picture's longer side, at most."""
LINE = 160
"""Characters of a shown text, at most."""
CARD: dict[str, pa.DataType] = {"key": pa.string(), "text": pa.string(), "label": pa.string(), "picture": pa.binary()}
"""The columns of a card's examples, and their types; of a multilabel task ``label`` is a list of those."""


@dataclass(frozen=True)
class CardJob(Job):
    """A task whose card is to be written: what the study tells of it to those who lack its data."""

    task: str


@dataclass(frozen=True)
class SliceJob(Job):
    """A slice whose examples are to be written down."""

    slice: Slice


@dataclass(frozen=True)
class ResultsJob(Job):
    """The scores to gather: of each target and method, and the predictions (an artifact) that a score is made from."""

    rows: tuple[tuple[Slice, str, str], ...]


def write_card(materials: Materials, job: CardJob) -> None:
    """Write down what a task is: its labels' texts and sizes, and a few test examples, their pictures made small.

    The examples are of those that experts are scored on.

    Raises:
        PituneError: a picture cannot be read or decoded.
    """
    task = materials.task(job.task)
    labels = [{"label": label, "text": text} for label, text in zip(task.labels, task.label_texts, strict=True)]
    rows = [
        {
            "key": example.key,
            "text": shorten(example.text),
            "label": spelled(example.label, task.labels),
            "picture": example.picture.thumbnail(SIDE) if example.picture else None,
        }
        for example in sorted(materials.test(task.name), key=_lot)[:SHOWN]
    ]
    columns = CARD | ({"label": pa.list_(pa.string())} if task.family == "multilabel" else {})
    materials.store.commit(
        job.artifacts[0],
        {
            "labels.parquet": table_bytes(labels),
            "examples.parquet": table_bytes(pa.Table.from_pylist(rows, pa.schema(columns))),
        },
        job.fingerprint,
        inputs=job.inputs,
        modality=task.modality,
        metric=task.metric,
        labels=len(labels),
        examples={split: len(examples) for split, examples in task.splits.items()},
    )


def shorten(text: str) -> str:
    """Return a text as one line of at most :data:`LINE` characters."""
    line = " ".join(text.split())
    return line if len(line) <= LINE else line[: LINE - 1] + "…"


def _lot(example: Example) -> bytes:
    """Return what decides whether an example is shown: a hash of its key, but not the one that cuts splits."""
    return hashlib.sha256(f"shown {example.key}".encode()).digest()


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
    store = materials.store
    catalogue = store.catalogue()
    scored: dict[str, dict[str, object]] = {}
    for _, _, prediction in job.rows:
        if prediction not in scored:
            manifest = score_of(catalogue, prediction, store)
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


def score_of(catalogue: Mapping[str, Manifest], prediction: str, store: Store) -> Manifest:
    """Return the manifest of predictions (an artifact), which has their ``metric``, ``value`` and ``examples``.

    Raises:
        PituneError: they are missing in the study.
    """
    if prediction not in catalogue:
        raise PituneError(f"{store.where(prediction)}: is missing; run the study again")
    return catalogue[prediction]


def counted_again(store: Store) -> Callable[[str, str], float]:
    """Return what gives the value of predictions (an artifact) by a metric, from their rows; each is read once."""

    @functools.cache
    def value(prediction: str, metric: str) -> float:
        table = store.table(prediction).to_pydict()
        return METRICS[metric](table["label"], table["prediction"], table["score"])

    return value


def wrong_scores(store: Store) -> list[str]:
    """Return one line per row of ``results.parquet`` that its predictions do not bear out."""
    wrong = []
    value = counted_again(store)
    rows = store.table(RESULTS).to_pylist() if store.manifest(RESULTS) else []
    if rows and "prediction" not in rows[0]:
        raise PituneError(f"{store.where(RESULTS)}: has no column prediction, as older ones; run the study again")
    for row in rows:
        artifact = row["prediction"]
        right = value(artifact, row["metric"])
        if abs(right - row["value"]) > 1e-9:
            wrong.append(f"{RESULTS}: {row['slice']} {row['method']} is {row['value']}, {artifact} gives {right}")
    return wrong
