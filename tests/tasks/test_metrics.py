"""The metrics, against what is counted by hand and against scikit-learn on the probabilities themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pitune.errors import PituneError
from pitune.tasks.building import build_task
from pitune.tasks.metrics import METRICS, OF_SEVERAL, OF_TWO
from pitune.tasks.readers import Row


def test_metrics_by_hand() -> None:
    labels, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0]
    f1 = (2 * 2 / (2 * 2 + 2 + 1), 2 * 1 / (2 * 1 + 1 + 1), 0.0)
    expected = {
        "accuracy": 3 / 6,
        "balanced_accuracy": (2 / 3 + 1 / 2 + 0) / 3,
        "macro_f1": sum(f1) / 3,
        "weighted_f1": (3 * f1[0] + 2 * f1[1]) / 6,
    }
    found = {name: metric(labels, predictions, [0.5] * 6) for name, metric in METRICS.items() if name in expected}
    assert set(METRICS) == {*expected, *OF_TWO, *OF_SEVERAL}
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


def eleven_points(has: list[bool], scores: list[float]) -> float:
    """By its definition: a loop over thresholds of the score, and one over recalls."""
    points = []
    for threshold in set(scores):
        said = [score >= threshold for score in scores]
        hits = sum(one and right for one, right in zip(said, has, strict=True))
        points.append((hits / sum(has), hits / sum(said)))
    return sum(max(p for r, p in points if r >= tenth / 10) for tenth in range(11)) / 11


@pytest.mark.parametrize("seed", range(5))
def test_mean_average_precision_by_its_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.random((40, 4)) < [0.5, 0.2, 0.05, 0.0]
    truth[0, 2] = True
    scores = (generator.normal(size=(40, 4)) + truth).round(1)  # with ties; some examples have no label
    labels = [[name for name, has in zip("abcd", row, strict=True) if has] for row in truth]
    found = METRICS["mean_average_precision"](
        labels, [[]] * 40, [dict(zip("abcd", row, strict=True)) for row in scores]
    )
    each = [eleven_points(truth[:, place].tolist(), scores[:, place].tolist()) for place in range(3)]  # nobody has d
    assert found == pytest.approx(np.mean(each))


def test_mean_average_precision_of_four_examples() -> None:
    """The right ones come first and third: 1 up to a recall of 1/2, 2/3 beyond it. And without any there is none."""
    scores = [{"a": score} for score in (0.9, 0.8, 0.7, 0.6)]
    metric = METRICS["mean_average_precision"]
    assert metric([["a"], [], ["a"], []], [[]] * 4, scores) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert metric([[], ["a"], [], []], [[]] * 4, scores) == pytest.approx(
        1 / 2
    )  # the first is wrong: 1/2 at recall 0 too
    assert metric([[]] * 4, [[]] * 4, scores) == 0.0


@pytest.mark.parametrize(
    ("metric", "label", "said"),
    [
        ("accuracy", ("a",), "its examples have several labels, accuracy is of one each; write mean_average_precision"),
        ("roc_auc", (), "its examples have several labels, roc_auc is of one each; write mean_average_precision"),
        (
            "mean_average_precision",
            "a",
            "mean_average_precision is a metric of examples with several labels, its have one",
        ),
    ],
)
def test_a_metric_fits_the_family(metric: str, label: str | tuple[str, ...], said: str) -> None:
    rows = {split: [Row(split, "text", label, "row 1")] for split in ("train", "validation", "test")}
    with pytest.raises(PituneError, match=f"^task mine: {said}"):
        build_task("mine", metric, {"a": "a", "b": "b"}, rows)
