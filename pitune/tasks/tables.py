"""Tasks out of tables, webdataset shards and folders of pictures (:mod:`pitune.tasks.readers` says how those are read).

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
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from pitune.assets import fetch, located
from pitune.errors import PituneError
from pitune.settings import Settings
from pitune.store import fingerprint_of
from pitune.tasks.duplicates import without_near_duplicates
from pitune.tasks.metrics import METRICS
from pitune.tasks.readers import Columns, Row, read_rows
from pitune.tasks.task import NAME, PLAIN, SPLITS, Example, Family, Task

SHARES: dict[tuple[str, ...], tuple[float, float, float]] = {
    (): (1.0, 0.0, 0.0),
    ("validation",): (0.90, 0.10, 0.0),
    ("test",): (0.75, 0.0, 0.25),
    ("validation", "test"): (0.60, 0.15, 0.25),
}
"""Which fractions of the train table become train, validation and test, by the splits that have no table."""

MODALITIES = {"text": (False, True), "image": (True, False), "image+text": (True, True)}
"""What a task's examples may have: a picture, a text."""


class TableSource(Settings):
    """A task of one's own, as a study's configuration gives it.

    Attributes:
        train: URI of the training table (see :mod:`pitune.assets`): one file, a folder of files of one kind, or a
            folder of pictures, which has a sub-folder for each label value and no columns.
        validation: URI of the validation table; without it, a fixed part of ``train`` (see :data:`SHARES`).
        test: the same for the test table.
        text: the column with the text; of webdataset shards: a member's extension (``txt``) or a field of ``.json``;
            None: ``text``, or none where there is an ``image``.
        image: the column with the picture: a path inside the table's folder; in parquet also bytes, or a struct
            ``{bytes, path}``; of shards: the members' extensions (``jpg``, ``jpg;png``); None: no pictures.
        label: the column with the label value; of shards: ``cls``, or a field of ``.json``.
        key: the column that names an example for good; without it: split and row, ``train-000123``.
        labels: for each label value, in the order of the label indices, the text that describes it to the backbone.
        caption: makes it a retrieval task, with neither ``label`` nor ``labels``: the column with the text that is to
            be found, for each example, among those of all examples; of shards as for ``text``.
        templates: sentences for a label's text, each with one ``{}`` for it: ``a photo of a {}.``; what the backbone
            alone makes of a label is the mean over all of them.
        metric: a name in :data:`pitune.tasks.metrics.METRICS`.
        near_duplicates: by how many of 64 bits the perceptual hashes of near-duplicates differ at most. Pictures of
            train and validation that are near one of test are dropped, and those of train near one of validation. 6 is
            right for drawings and pictures off the web; None (nothing is dropped) where all are alike, as digits are:
            :mod:`pitune.tasks.duplicates` has the measurements.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    train: str
    validation: str | None = None
    test: str | None = None
    text: str | None = None
    image: str | None = None
    label: str = "label"
    key: str | None = None
    labels: dict[str, str] | None = Field(None, min_length=2)
    caption: str | None = None
    templates: tuple[str, ...] = Field(PLAIN, min_length=1)
    metric: str = "accuracy"
    near_duplicates: int | None = Field(None, ge=0, le=16)

    def located(self) -> TableSource:
        """Return the source for a process with another working folder: with absolute paths."""
        uris = {name: getattr(self, name) for name in ("train", "validation", "test")}
        return self.model_copy(update={name: located(uri) for name, uri in uris.items() if uri is not None})

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"{metric!r} is no metric; write one of {', '.join(METRICS)}")
        return metric

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: dict[str, str] | None) -> dict[str, str] | None:
        if labels is None:
            return None
        if not all(text.strip() for text in labels.values()):
            raise ValueError("a label's text is empty; describe the label in a few words")
        if len(set(labels.values())) < len(labels):
            raise ValueError("two labels have the same text; no model can tell them apart")
        return labels

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"{template!r} has no {{}}, or several; write one, where the label's text goes")
        if len(set(templates)) < len(templates):
            raise ValueError("a template is there twice; name each once")
        return templates

    @model_validator(mode="after")
    def _has_candidates(self) -> Self:
        if self.labels is None and self.caption is None:
            raise ValueError("has no labels; give each label value's text, or, for retrieval, the column caption")
        if self.caption is not None and (self.labels is not None or "label" in self.model_fields_set):
            raise ValueError("has a caption, which is found among all captions, and label or labels; leave one out")
        return self


def table_task(name: str, source: TableSource) -> Task:
    """Build the task that ``source`` describes.

    Raises:
        PituneError: a table cannot be had or read, lacks a column or a picture's file, has an unknown label value, an
            empty text or picture or a key twice, some tables have pictures or texts and others none, or a split lacks a
            class.
    """
    columns = Columns(source.label, source.text, source.image, source.key, source.caption)
    uris = {"train": source.train, "validation": source.validation, "test": source.test}
    tables = {split: read_rows(fetch(uri).path, split, columns) for split, uri in uris.items() if uri is not None}
    missing = tuple(split for split in SPLITS if split not in tables)
    rows = {**tables, **split_rows(tables["train"], missing)}
    return build_task(name, source.metric, source.labels, rows, source.near_duplicates, source.templates)


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
        rows: the rows of each split.
        near_duplicates: by how many bits near-duplicates differ at most; None: they are kept.
        templates: of the candidates' texts; see :class:`~pitune.tasks.task.Task`.

    Raises:
        PituneError: see :func:`table_task`.
    """
    if NAME.fullmatch(name) is None:
        raise PituneError(f"task {name!r}: a task's name has lower-case letters, digits, _ and - only")
    family: Family = "classification"
    if labels is None:
        family, rows = "retrieval", {split: [_captioned(row) for row in rows[split]] for split in SPLITS}
        labels = {label: label for label in sorted({row.label for held in rows.values() for row in held})}
    index = {label: i for i, label in enumerate(labels)}
    checked = {split: [_example(name, row, index) for row in rows[split]] for split in SPLITS}
    _check_keys(name, checked)
    splits = without_duplicates(checked)
    if near_duplicates is not None:
        splits = without_near_duplicates(name, splits, near_duplicates)
    if family == "retrieval":
        labels, splits = _still_met(tuple(labels), splits)
    _check_classes(name, tuple(labels) if family == "classification" else (), splits)
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


def _facts(example: Example) -> list[str | int]:
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
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
    if place < shares[0]:
        return "train"
    return "validation" if place < shares[0] + shares[1] else "test"


# --- checks --------------------------------------------------------------------------------------------------------


def _example(task: str, row: Row, index: Mapping[str, int]) -> Example:
    text = (row.text or "").strip()
    if not text and (row.text is not None or row.picture is None):
        raise PituneError(f"{row.place}: the text is empty; remove the row or fill it in")
    if row.label not in index:
        raise PituneError(f"{row.place}: label {row.label!r} is none of task {task}'s labels, {', '.join(index)}")
    return Example(row.key, text, index[row.label], row.picture)


def _captioned(row: Row) -> Row:
    """Return a row of a retrieval task with its caption as it is compared with others: without white space around."""
    caption = row.label.strip()
    if not caption:
        raise PituneError(f"{row.place}: the caption is empty; remove the row or fill it in")
    return replace(row, label=caption)


def _still_met(
    captions: tuple[str, ...], splits: Mapping[str, tuple[Example, ...]]
) -> tuple[dict[str, str], dict[str, tuple[Example, ...]]]:
    """Return the captions that an example has, without those of dropped duplicates, and the examples labelled anew."""
    met = sorted({example.label for examples in splits.values() for example in examples})
    place = {label: index for index, label in enumerate(met)}
    return {captions[label]: captions[label] for label in met}, {
        split: tuple(replace(example, label=place[example.label]) for example in examples)
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
        present = {example.label for example in examples}
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
