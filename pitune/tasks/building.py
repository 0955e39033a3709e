"""Rows made into a task: splits cut, duplicates dropped, everything checked, the fingerprint taken.

**Splits** that a source does not have are cut from its train table by a hash of each example's key: the first 8 bytes
of sha256(key), as a fraction of 2^64. No seed is in it, and an example stays in its split whatever others come or go.

**Duplicates.** The test split is kept as it is. A text that occurs in test is in neither of the others, one of
validation is not in train, and train and validation have each text once: otherwise a score would measure memory, and a
few-shot slice could validate on what it trained on. Texts are the same if equal but for white space at the ends. With
pictures all of this holds for the pair of text and picture; pictures are the same if their files' bytes are. A task may
also have near-duplicates among its pictures dropped (:mod:`pitune.tasks.duplicates`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from pitune.errors import PituneError
from pitune.store import fingerprint_of
from pitune.tasks.duplicates import without_near_duplicates
from pitune.tasks.metrics import OF_SEVERAL, OF_TWO
from pitune.tasks.readers import Row
from pitune.tasks.task import NAME, PLAIN, SPLITS, Example, Family, Label, Task

SHARES: dict[tuple[str, ...], tuple[float, float, float]] = {
    (): (1.0, 0.0, 0.0),
    ("validation",): (0.90, 0.10, 0.0),
    ("test",): (0.75, 0.0, 0.25),
    ("validation", "test"): (0.60, 0.15, 0.25),
}
"""Which fractions of the train table become train, validation and test, by the splits that have no table."""

MODALITIES = {"text": (False, True), "image": (True, False), "image+text": (True, True)}
"""What a task's examples may have: a picture, a text."""


def build_task(
    name: str,
    metric: str,
    labels: Mapping[str, str] | None,
    rows: Mapping[str, list[Row]],
    near_duplicates: int | None = None,
    templates: tuple[str, ...] = PLAIN,
) -> Task:
    """Build a task: drop duplicates (see above), check everything, take the fingerprint.

    Args:
        name: the task's name.
        metric: a name in :data:`pitune.tasks.metrics.METRICS`.
        labels: each label value's text; the order gives the label indices. None: it is a retrieval task, whose label
            values are captions; those of all examples that are left are its labels, in alphabetic order.
        rows: the rows of each split. One whose label is a tuple makes it a multilabel task.
        near_duplicates: by how many bits near-duplicates differ at most; None: they are kept.
        templates: of the candidates' texts; see :class:`~pitune.tasks.task.Task`.

    Raises:
        PituneError: a row has an unknown label value, an empty text or a key that another one has, some have pictures
            or texts and others none, a split lacks a class, or the metric is not for such labels.
    """
    if NAME.fullmatch(name) is None:
        raise PituneError(f"task {name!r}: a task's name has lower-case letters, digits, _ and - only")
    family = _family(labels, rows)
    _check_metric(name, metric, family, labels)
    if labels is None:
        rows = {split: [_captioned(row) for row in rows[split]] for split in SPLITS}
        labels = {label: label for label in sorted({row.labels[0] for held in rows.values() for row in held})}
    index = {label: i for i, label in enumerate(labels)}
    checked = {split: [_example(name, family, row, index) for row in rows[split]] for split in SPLITS}
    _check_keys(name, checked)
    splits = without_duplicates(checked)
    if near_duplicates is not None:
        splits = without_near_duplicates(name, splits, near_duplicates)
    if family == "retrieval":
        labels, splits = _still_met(tuple(labels), splits)
    _check_classes(name, () if family == "retrieval" else tuple(labels), splits)
    modality = _modality(name, splits)
    facts = {"name": name, "modality": modality, "metric": metric, "labels": list(labels.items())}
    # What all tasks were before there were others is left out: their fingerprints are what they were.
    facts |= {"family": family} if family != "classification" else {}
    facts |= {"templates": list(templates)} if templates != PLAIN else {}
    content = {split: [_facts(example) for example in examples] for split, examples in splits.items()}
    fingerprint = fingerprint_of({"task": facts, "splits": content})
    return Task(name, modality, metric, tuple(labels), tuple(labels.values()), splits, fingerprint, family, templates)


def without_duplicates(splits: Mapping[str, list[Example]]) -> dict[str, tuple[Example, ...]]:
    """Return the splits, each content only in its first place of test, validation, train; test itself is kept whole."""
    seen = {_content(example) for example in splits["test"]}
    kept = {"test": tuple(splits["test"])}
    for split in ("validation", "train"):
        chosen = []
        for example in splits[split]:
            if _content(example) not in seen:
                seen.add(_content(example))
                chosen.append(example)
        kept[split] = tuple(chosen)
    return {split: kept[split] for split in SPLITS}


def _content(example: Example) -> tuple[str, str | None]:
    return example.text, None if example.picture is None else example.picture.digest


def _facts(example: Example) -> list[str | Label]:
    """Return what a fingerprint has of an example; of one without a picture what it had before there were any."""
    return [example.key, example.text, example.label, *([example.picture.digest] if example.picture else [])]


def split_rows(rows: list[Row], missing: tuple[str, ...]) -> dict[str, list[Row]]:
    """Cut the train table's rows into train and the ``missing`` splits, by their keys and :data:`SHARES`."""
    parts: dict[str, list[Row]] = {split: [] for split in ("train", *missing)}
    for row in rows:
        parts[split_of(row.key, SHARES[missing])].append(row)
    return parts


def split_of(key: str, shares: tuple[float, float, float]) -> str:
    """Return the split that a key belongs to, where train, validation and test have these ``shares`` of all keys."""
    place = _place(key)
    if place < shares[0]:
        return "train"
    return "validation" if place < shares[0] + shares[1] else "test"


def held_out(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Part rows into those to train on and those to validate on, label by label.

    Of each label as large a share is validated on as :data:`SHARES` has it, but one row at least: where labels have few
    rows each, a cut by the keys alone would leave some label out. The keys' places say which ones.
    """
    of_label: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (_place(row.key), row.key)):
        for label in row.labels:
            of_label[label].append(row)
    share = SHARES[("validation",)][1]
    held = {row.key for some in of_label.values() for row in some[: max(1, round(share * len(some)))]}
    return [row for row in rows if row.key not in held], [row for row in rows if row.key in held]


def _place(key: str) -> float:
    """Return where the hash of a key lies in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64


# --- checks --------------------------------------------------------------------------------------------------------


def _family(labels: Mapping[str, str] | None, rows: Mapping[str, list[Row]]) -> Family:
    if labels is None:
        return "retrieval"
    has_several = any(isinstance(row.label, tuple) for held in rows.values() for row in held)
    return "multilabel" if has_several else "classification"


def _check_metric(task: str, metric: str, family: Family, labels: Mapping[str, str] | None) -> None:
    if family == "multilabel" and metric not in OF_SEVERAL:
        right = " or ".join(OF_SEVERAL)
        raise PituneError(f"task {task}: its examples have several labels, {metric} is of one each; write {right}")
    if family != "multilabel" and metric in OF_SEVERAL:
        raise PituneError(
            f"task {task}: {metric} is a metric of examples with several labels, its have one each; give the separator "
            "of its labels, or lists of them"
        )
    if metric in OF_TWO and len(labels or ()) != 2:
        raise PituneError(f"task {task}: {metric} is a metric of two classes; it has {len(labels or ()) or 'captions'}")


def _example(task: str, family: Family, row: Row, index: Mapping[str, int]) -> Example:
    text = (row.text or "").strip()
    if not text and (row.text is not None or row.picture is None):
        raise PituneError(f"{row.place}: the text is empty; remove the row or fill it in")
    for value in row.labels:
        if value not in index:
            raise PituneError(f"{row.place}: label {value!r} is none of task {task}'s labels, {', '.join(index)}")
    several = tuple(sorted({index[value] for value in row.labels}))
    return Example(row.key, text, several if family == "multilabel" else several[0], row.picture)


def _captioned(row: Row) -> Row:
    """Return a row of a retrieval task with its caption as it is compared with others: without white space around."""
    caption = row.labels[0].strip()
    if not caption:
        raise PituneError(f"{row.place}: the caption is empty; remove the row or fill it in")
    return replace(row, label=caption)


def _still_met(
    captions: tuple[str, ...], splits: Mapping[str, tuple[Example, ...]]
) -> tuple[dict[str, str], dict[str, tuple[Example, ...]]]:
    """Return the captions that an example has, without those of dropped duplicates, and the examples labelled anew."""
    met = sorted({example.labels[0] for examples in splits.values() for example in examples})
    place = {label: index for index, label in enumerate(met)}
    return {captions[label]: captions[label] for label in met}, {
        split: tuple(replace(example, label=place[example.labels[0]]) for example in examples)
        for split, examples in splits.items()
    }


def _check_keys(task: str, splits: Mapping[str, list[Example]]) -> None:
    seen: set[str] = set()
    for example in (example for examples in splits.values() for example in examples):
        if example.key in seen:
            raise PituneError(f"task {task}: two examples have the key {example.key!r}; a key names one example")
        seen.add(example.key)


def _check_classes(task: str, labels: tuple[str, ...], splits: Mapping[str, tuple[Example, ...]]) -> None:
    for split, examples in splits.items():
        if not examples:
            raise PituneError(f"task {task}: its {split} split has no example; it needs one or more")
        present = {label for example in examples for label in example.labels}
        for index, label in enumerate(labels):
            if index not in present:
                raise PituneError(
                    f"task {task}: its {split} split has no example of class {label!r}; it needs one or more"
                )


def _modality(task: str, splits: Mapping[str, tuple[Example, ...]]) -> str:
    """Return what the examples have, each the same: ``text``, ``image`` or ``image+text``."""
    has = {(example.picture is not None, example.text != "") for examples in splits.values() for example in examples}
    found = [name for name, parts in MODALITIES.items() if parts in has]
    if len(found) != 1:
        raise PituneError(f"task {task}: some of its examples are {', some '.join(found)}; all must be alike")
    return found[0]
