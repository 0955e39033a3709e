"""How predictions are scored: functions from labels, predictions and scores to a value in [0, 1], more being better.

ELEVATER's metrics (arXiv 2204.08790) are here under scikit-learn's names: its mean-per-class is ``balanced_accuracy``,
and its 11-point mAP, which scikit-learn has not, ``mean_average_precision``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

Metric = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], float]
"""Takes the true labels, the predicted ones (both of any type that can be sorted) and how likely each predicted one is,
of equal length ``(examples,)``, one or more. Of a multilabel task it takes lists of labels, and of each example how
well every label of the task scores."""

# scikit-learn is imported where it is used: it takes a second, and a configuration only needs the names.


def accuracy(labels: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float]) -> float:
    """Return the fraction of examples whose prediction is their label."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def balanced_accuracy(labels: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float]) -> float:
    """Return the mean over the classes among ``labels`` of the fraction of each that was recognised."""
    from sklearn.metrics import recall_score

    return float(recall_score(labels, predictions, labels=sorted(set(labels)), average="macro", zero_division=0.0))


def macro_f1(labels: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float]) -> float:
    """Return the mean F1 over the classes among ``labels`` or ``predictions``; 0 for one that is never hit."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def weighted_f1(labels: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float]) -> float:
    """Return the mean F1 over classes, each weighted by its number of examples."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="weighted", zero_division=0.0))


def roc_auc(labels: Sequence[Any], predictions: Sequence[Any], scores: Sequence[float]) -> float:
    """Return the area under the ROC curve of two classes, ties counting half; 0.5 where there are examples of one only.

    It is how often an example of one class gets a higher probability of that class than one of the other does. Which
    class that is changes nothing: what is likely to be of the one is unlikely to be of the other.
    """
    from sklearn.metrics import roc_auc_score

    first, *others = sorted(set(labels))
    if not others:
        return 0.5
    chances = [score if said == first else 1 - score for said, score in zip(predictions, scores, strict=True)]
    return float(roc_auc_score([label == first for label in labels], chances))


def mean_average_precision(
    labels: Sequence[Collection[Any]], predictions: Sequence[Any], scores: Sequence[Mapping[Any, float]]
) -> float:
    """Return the mean over labels of PASCAL VOC's interpolated average precision; 0 where no example has a label.

    A label's scores rank all examples. Its precision is averaged over the recalls 0, 0.1, …, 1: at each, the highest
    that is reached with that recall or more (Everingham et al. 2010, section 4.2). Examples that score the same come
    together; a label that no example has does not count. ELEVATER's 11point_mAP is the same, but for a precision of 1
    that it has at recall 0 even where the first example has not the label.
    """
    from sklearn.metrics import precision_recall_curve

    found = []
    for label in scores[0]:
        has = [label in some for some in labels]
        if any(has):
            precision, recall, _ = precision_recall_curve(has, [one[label] for one in scores])
            precision, recall = precision[:-1], recall[:-1]  # the last, 1 at a recall of 0, is of no example
            found.append(np.mean([precision[recall >= tenth / 10].max() for tenth in range(11)]))
    return float(np.mean(found)) if found else 0.0


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (accuracy, balanced_accuracy, macro_f1, weighted_f1, roc_auc, mean_average_precision)
}
"""The metrics by the name that a task's ``metric`` gives."""
OF_TWO = ("roc_auc",)
"""The metrics of tasks with two classes."""
OF_SEVERAL = ("mean_average_precision",)
"""The metrics of tasks whose examples may have several labels, which have no others."""
