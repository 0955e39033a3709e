"""The study's tables: which examples every slice drew, and what every method scored."""

from __future__ import annotations

from pitune.errors import PituneError
from pitune.plan import METHODS, RESULTS, Plan
from pitune.store import Store, fingerprint_of, table_bytes
from pitune.tasks.metrics import METRICS
from pitune.tasks.task import Slice


def write_slices(plan: Plan) -> None:
    """Write down which examples each slice drew."""
    materials, store = plan.materials, plan.store
    for name, chosen in plan.slices().items():
        inputs = {
            "makes": "slice",
            "slice": name,
            "task": materials.task(chosen.task).fingerprint,
            "validation_examples": plan.config.training.validation_examples if chosen.shots is None else None,
        }
        artifact = f"slices/{name}.parquet"
        if not store.is_current(artifact, fingerprint_of(inputs)):
            task, data = materials.task(chosen.task), materials.data(chosen)
            rows = [
                {"key": example.key, "role": role, "label": task.labels[example.label]}
                for role in ("train", "validation")
                for example in getattr(data, role)
            ]
            store.commit(artifact, {"": table_bytes(rows)}, fingerprint_of(inputs), inputs=inputs)


def write_results(plan: Plan) -> None:
    """Gather every score into ``results.parquet``.

    Raises:
        PituneError: a prediction is missing.
    """
    inputs = plan.results_inputs()
    if plan.store.is_current(RESULTS, fingerprint_of(inputs)):
        return
    rows = [_score(plan.store, target, method) for target in plan.config.target_slices for method in METHODS]
    plan.store.commit(RESULTS, {"": table_bytes(rows)}, fingerprint_of(inputs), inputs=inputs)


def drop_old_results(plan: Plan) -> None:
    """Discard ``results.parquet`` where a run will make another: old scores must not stand beside new artifacts."""
    if not plan.graph_is_current() or not plan.store.is_current(RESULTS, fingerprint_of(plan.results_inputs())):
        plan.store.discard(RESULTS)


def wrong_scores(store: Store) -> list[str]:
    """Return one line per row of ``results.parquet`` that its predictions do not bear out."""
    wrong = []
    rows = store.table(RESULTS).to_pylist() if store.manifest(RESULTS) else []
    for row in rows:
        artifact = f"predictions/{row['slice']}/{row['method']}.parquet"
        table = store.table(artifact).to_pydict()
        value = METRICS[row["metric"]](table["label"], table["prediction"])
        if abs(value - row["value"]) > 1e-9:
            wrong.append(f"{RESULTS}: {row['slice']} {row['method']} is {row['value']}, {artifact} gives {value}")
    return wrong


def _score(store: Store, target: Slice, method: str) -> dict[str, object]:
    """Return a row of ``results.parquet``; its seconds are what making the expert took."""
    prediction = store.manifest(f"predictions/{target}/{method}.parquet")
    if prediction is None:
        raise PituneError(f"{store.root}/predictions/{target}/{method}.parquet: is missing; run the study again")
    maker = store.manifest(prediction["expert"]) if prediction["expert"] else None
    return {
        "method": method,
        "task": target.task,
        "shots": str(target.shots),
        "seed": target.seed,
        "slice": str(target),
        "metric": prediction["metric"],
        "value": prediction["value"],
        "examples": prediction["examples"],
        "seconds": float(maker["seconds"]) if maker else 0.0,
    }
