"""How predictions are scored: functions from labels and predictions to a value in [0, 1], more being better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Metric = Callable[[Sequence[Any], Sequence[Any]], float]
"""Takes the true labels and the predicted ones (of any type), of equal length ``(examples,)``, one or more."""

# scikit-learn is imported where it is used: it takes a second, and a configuration only needs the names.


def accuracy(labels: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Return the fraction of examples whose prediction is their label."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def balanced_accuracy(labels: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Return the mean over the classes among ``labels`` of the fraction of each that was recognised."""
    from sklearn.metrics import recall_score

    return float(recall_score(labels, predictions, labels=sorted(set(labels)), average="macro", zero_division=0.0))


def macro_f1(labels: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Return the mean F1 over the classes among ``labels`` or ``predictions``; 0 for one that is never hit."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def weighted_f1(labels: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Return the mean F1 over classes, each weighted by its number of examples."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="weighted", zero_division=0.0))


METRICS: dict[str, Metric] = {
    metric.__name__: metric for metric in (accuracy, balanced_accuracy, macro_f1, weighted_f1)
}
"""The metrics by the name that a task's ``metric`` gives."""
