"""The transfer matrix: the expert of every source tuned on every target, and what that gains over the target's own.

A pair is an expert as any other, but for where it starts; so pairs train on the expert axis, those of one target on the
same rows. Each is an artifact: a matrix goes on pair by pair, and a new task adds its row and its column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pitune.results import COMMON, PAIRS, TRANSFER, counted_again, score_of
from pitune.store import Job, Store, fingerprint_of, table_bytes
from pitune.tasks.task import Slice

if TYPE_CHECKING:
    from pitune.materials import Materials
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node


class Pair(NamedTuple):
    """A source, a target, and the artifacts with the predictions of their pair and of the target's own expert."""

    source: Slice
    target: Slice
    prediction: str
    single: str


@dataclass(frozen=True)
class TransferJob(Job):
    """The matrix to gather."""

    pairs: tuple[Pair, ...]


def build_matrix(plan: Builder) -> Node | None:
    """Build the matrix that the configuration asks for, every pair and its score; None where it asks for none."""
    chosen = plan.config.transfer
    if chosen is None:
        return None
    pairs = []
    for target in chosen.target_slices:
        single = plan.score(f"{PAIRS}/{COMMON}", target, plan.expert(target)).name
        for source in chosen.source_slices:
            scored = plan.score(PAIRS, target, plan.pair(source, target)).name
            pairs.append(Pair(source, target, scored, single))
    needs = dict.fromkeys(name for pair in pairs for name in (pair.prediction, pair.single))
    listed = [[str(pair.source), str(pair.target), pair.prediction, pair.single] for pair in pairs]
    made_from = {"rows": listed, "predictions": {name: plan.fingerprint(name) for name in needs}}
    inputs = {"makes": "transfer", "rows": len(pairs), "predictions": fingerprint_of(made_from)}
    return plan.add(TransferJob((TRANSFER,), inputs, tuple(pairs)), PAIRS, "driver", tuple(needs), 0, write_transfer)


def write_transfer(materials: Materials, job: TransferJob) -> None:
    """Gather the scores of all pairs into ``transfer.parquet``.

    Raises:
        PituneError: a prediction is missing.
    """
    store = materials.store
    catalogue = store.catalogue()
    scores = {name: score_of(catalogue, name, store) for pair in job.pairs for name in (pair.prediction, pair.single)}
    rows = [
        {
            "source": str(source),
            "target": target.task,
            "shots": target.shots_text,
            "seed": target.seed,
            "slice": str(target),
            "metric": scores[prediction]["metric"],
            "score": scores[prediction]["value"],
            "single": scores[single]["value"],
            "gain": scores[prediction]["value"] - scores[single]["value"],
            "prediction": prediction,
            "single_prediction": single,
        }
        for source, target, prediction, single in job.pairs
    ]
    materials.store.commit(TRANSFER, {"": table_bytes(rows)}, job.fingerprint, inputs=job.inputs)


def wrong_pairs(store: Store) -> list[str]:
    """Return one line per row of ``transfer.parquet`` that its predictions do not bear out."""
    wrong = []
    value = counted_again(store)
    for row in store.table(TRANSFER).to_pylist() if store.manifest(TRANSFER) else []:
        score, single = (value(row[name], row["metric"]) for name in ("prediction", "single_prediction"))
        for name, right in (("score", score), ("single", single), ("gain", score - single)):
            if abs(row[name] - right) > 1e-9:
                wrong.append(
                    f"{TRANSFER}: {row['slice']} from {row['source']}: {name} is {row[name]}, "
                    f"the predictions give {right}"
                )
    return wrong
