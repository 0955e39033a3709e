"""The metrics, against what is counted by hand and against scikit-learn on the probabilities themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pitune.errors import PituneError
from pitune.tasks.building import build_task
from pitune.tasks.metrics import METRICS, OF_TWO


def test_metrics_by_hand() -> None:
    labels, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
    f1 = (2 * 2 / (2 * 2 + 2 + 1), 2 * 1 / (2 * 1 + 1 + 1), 0.0)
    expected = {
        "accuracy": 3 / 6,
        "balanced_accuracy": (2 / 3 + 1 / 2 + 0) / 3,
        "macro_f1": sum(f1) / 3,
        "weighted_f1": (3 * f1[0] + 2 * f1[1]) / 6,
    }
    found = {name: metric(labels, predictions, [0.5] * 6) for name, metric in METRICS.items() if name not in OF_TWO}
    assert found == pytest.approx(expected)


def said(chances: np.ndarray) -> tuple[list[str], list[float]]:
    """Return what is predicted where ``chances`` are the probabilities of \"no\", and how sure that is."""
    return np.where(chances >= 0.5, "no", "yes").tolist(), np.maximum(chances, 1 - chances).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_area_under_the_curve_counts_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    chances = generator.integers(0, 21, 60) / 20  # with ties
    labels = np.where(generator.random(60) < 0.3 + 0.4 * chances, "no", "yes")
    found = METRICS["roc_auc"](labels.tolist(), *said(chances))
    pairs = [(a > b) + (a == b) / 2 for a in chances[labels == "no"] for b in chances[labels == "yes"]]
    assert found == pytest.approx(np.mean(pairs))
    for positive, probabilities in (("yes", 1 - chances), ("no", chances)):  # whichever class is the positive one
        assert found == pytest.approx(roc_auc_score(labels == positive, probabilities))


def test_the_area_of_one_class_is_that_of_chance() -> None:
    assert METRICS["roc_auc"](["yes", "yes"], ["no", "yes"], [0.7, 0.6]) == 0.5


@pytest.mark.parametrize(("labels", "said"), [({"a": "a", "b": "b", "c": "c"}, "it has 3"), (None, "it has captions")])
def test_the_area_is_of_two_classes(labels: dict[str, str] | None, said: str) -> None:
    with pytest.raises(PituneError, match=f"task mine: roc_auc is a metric of two classes; {said}"):
        build_task("mine", "roc_auc", labels, {})
