"""Intervals over test examples, against textbook formulas and plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from synthetic import commit, tiny

from pitune.report import build_page
from pitune.report.modalities import HARMS, HELPS, crossing
from pitune.report.paired import PARTS, reaches
from pitune.report.transfer import read_pairs
from pitune.store import Store, table_bytes
from pitune.tasks.metrics import METRICS

T = 2.093024054408263
"""Student's t, two-sided 95 %, 19 degrees of freedom: from a table."""
COUNT = 10 * PARTS


def said(right: float, seed: int) -> list[str]:
    """Answers to yes or no that are right with a chance of ``right``; every other label is yes."""
    luck = np.random.default_rng(seed).random(COUNT) < right
    return ["yn"[(number % 2 == 0) != bool(one)] for number, one in enumerate(luck)]


def study(folder: Path, answers: dict[str, list[str]], metric: str = "accuracy") -> tuple[Store, list[dict[str, Any]]]:
    """A store of predictions by name, ``single`` among them, and the rows of a matrix of the others."""
    store, rows = Store(folder), []
    labels = ["yn"[number % 2 != 0] for number in range(COUNT)]
    for name, answer in answers.items():
        told = zip(labels, answer, strict=True)
        table = [
            {"key": f"{n:04d}", "label": label, "prediction": one, "score": 0.5} for n, (label, one) in enumerate(told)
        ]
        commit(store, f"predictions/{name}.parquet", {"": table_bytes(table[::-1] if name == "single" else table)})
        row: dict[str, Any] = {"source": f"{name}@full#0", "target": "t", "shots": "16", "seed": 0, "slice": "t@16#0"}
        scored = {"metric": metric, "score": accuracy(answer), "single": accuracy(answers["single"])}
        files = {"prediction": f"predictions/{name}.parquet", "single_prediction": "predictions/single.parquet"}
        rows += [] if name == "single" else [row | scored | files]
    return store, rows


def accuracy(answer: list[str]) -> float:
    return mean(one == "yn"[number % 2 != 0] for number, one in enumerate(answer))


def test_accuracy_has_the_interval_of_the_parts_means(tmp_path: Path) -> None:
    answers = {"single": said(0.6, 0), "a": said(0.9, 1), "b": said(0.6, 2)}
    store, rows = study(tmp_path, answers)
    found = reaches(store, store.artifacts(), rows)
    assert set(found) == {("a", ("t", "16")), ("b", ("t", "16"))}
    for name in "ab":
        right = [[one == "yn"[number % 2 != 0] for number, one in enumerate(answers[who])] for who in (name, "single")]
        apart = [int(a) - int(b) for a, b in zip(*right, strict=True)]
        means = [mean(apart[part::PARTS]) for part in range(PARTS)]
        assert found[name, ("t", "16")] == pytest.approx(T * stdev(means) / math.sqrt(PARTS))
        assert found[name, ("t", "16")] == pytest.approx(1.96 * stdev(apart) / math.sqrt(COUNT), rel=0.6)


def test_f1_has_the_jackknifes_interval(tmp_path: Path) -> None:
    answers = {"single": said(0.6, 0), "a": said(0.9, 1)}
    store, rows = study(tmp_path, answers, "macro_f1")
    labels = np.array(["yn"[number % 2 != 0] for number in range(COUNT)])

    def gain(kept: np.ndarray) -> float:
        scores = [f1_score(labels[kept], np.array(answers[who])[kept], average="macro") for who in ("a", "single")]
        return float(scores[0] - scores[1])

    whole = gain(np.arange(COUNT))
    left = [gain(np.array([n for n in range(COUNT) if n % PARTS != part])) for part in range(PARTS)]
    pseudo = [PARTS * whole - (PARTS - 1) * one for one in left]
    assert reaches(store, store.artifacts(), rows)["a", ("t", "16")] == pytest.approx(
        T * stdev(pseudo) / math.sqrt(PARTS)
    )


def test_what_cannot_be_told_is_left_out(tmp_path: Path) -> None:
    store, rows = study(tmp_path, {"single": said(0.6, 0), "a": said(0.9, 1)})
    gone = [{**rows[0], "prediction": "predictions/gone.parquet"}, {**rows[0], "single_prediction": None}]
    assert reaches(store, store.artifacts(), gone) == {}
    few = table_bytes([{"key": "k", "label": "y", "prediction": "y", "score": 0.5}])
    for name in ("a", "single"):
        commit(store, f"predictions/{name}.parquet", {"": few})
    assert reaches(store, store.artifacts(), rows) == {}


def test_edges_of_one_seed_are_decided_by_examples(tmp_path: Path) -> None:
    store, rows = study(tmp_path, {"single": said(0.6, 0), "a": said(0.95, 1), "b": said(0.2, 2)})
    found = reaches(store, store.artifacts(), rows)
    made = crossing({"a": "text", "b": "text", "t": "image"}, [], read_pairs(rows), 0.0005, found)
    assert made is not None and made.over == "test examples"
    assert {edge.source: edge.verdict for edge in made.edges} == {"a": HELPS, "b": HARMS}
    for edge, row in zip(made.edges, rows, strict=True):
        assert edge.gain is not None and edge.gain.low is not None and edge.gain.high is not None
        assert (edge.gain.low + edge.gain.high) / 2 == pytest.approx(row["score"] - row["single"])


def test_the_page_says_what_its_intervals_are_over(tmp_path: Path) -> None:
    store = tiny(seeds=(0,), modalities={"movie": "image"}).write(Store(tmp_path / "few"))
    rows = store.table("transfer.parquet").to_pylist()
    answers, _ = study(tmp_path / "other", {"single": said(0.6, 0), "a": said(0.9, 1)})
    files = [f"predictions/movie@16#0/transfer/{name}.parquet" for name in ("amazon@full#0", "common")]
    for file, name in zip(files, ("a", "single"), strict=True):
        commit(store, file, {"": table_bytes(answers.table(f"predictions/{name}.parquet"))})
    told = dict(zip(("prediction", "single_prediction"), files, strict=True))
    commit(store, "transfer.parquet", {"": table_bytes([{"single_prediction": "", **row, **told} for row in rows])})
    page = build_page(store)
    assert "over test examples, as the seeds are too few" in page
    assert "by their intervals over test examples" in page


def test_of_several_labels_the_score_is_the_metrics(tmp_path: Path) -> None:
    """Each part left out by a plain loop; the interval is that of the jackknife."""
    generator, store, metric = np.random.default_rng(0), Store(tmp_path), METRICS["mean_average_precision"]
    truth, rows = generator.random((COUNT, 2)) < 0.4, {}
    for name in ("single", "a"):
        scores = truth + generator.normal(size=(COUNT, 2))
        rows[name] = [
            {
                "key": f"{n:04d}",
                "label": [label for label, has in zip("xy", truth[n], strict=True) if has],
                "prediction": [],
                "score": dict(zip("xy", scores[n].tolist(), strict=True)),
            }
            for n in range(COUNT)
        ]
        commit(store, f"predictions/{name}.parquet", {"": table_bytes(rows[name])})

    def gain(left_out: int | None) -> float:
        kept = [n for n in range(COUNT) if n % PARTS != left_out]
        one, other = (
            metric([rows[name][n]["label"] for n in kept], [], [rows[name][n]["score"] for n in kept])
            for name in ("a", "single")
        )
        return one - other

    row = {"source": "a@full#0", "target": "t", "shots": "16", "seed": 0, "metric": metric.__name__}
    files = {"prediction": "predictions/a.parquet", "single_prediction": "predictions/single.parquet"}
    found = reaches(store, store.artifacts(), [row | files])
    values = [PARTS * gain(None) - (PARTS - 1) * gain(part) for part in range(PARTS)]
    assert found["a", ("t", "16")] == pytest.approx(T * stdev(values) / math.sqrt(PARTS))
