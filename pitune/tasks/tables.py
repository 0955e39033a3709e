"""Tasks out of tables: csv, tsv, jsonl and parquet files, and webdataset shards.

**Splits** that a source does not have are cut from its train table by a hash of each example's key: the first 8 bytes
of sha256(key), as a fraction of 2^64. No seed is in it, and an example stays in its split whatever others come or go.

**Duplicates.** The test split is kept as it is. A text that occurs in test is in neither of the others, one of
validation is not in train, and train and validation have each text once: otherwise a score would measure memory, and a
few-shot slice could validate on what it trained on. Texts are the same if equal but for white space at the ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarError
from typing import Any

import pyarrow as pa
from pydantic import ConfigDict, Field, field_validator

from pitune.assets import fetch, located
from pitune.errors import PituneError, reason
from pitune.settings import Settings
from pitune.store import fingerprint_of
from pitune.tasks.metrics import METRICS
from pitune.tasks.task import NAME, SPLITS, Example, Task

SHARES: dict[tuple[str, ...], tuple[float, float, float]] = {
    (): (1.0, 0.0, 0.0),
    ("validation",): (0.90, 0.10, 0.0),
    ("test",): (0.75, 0.0, 0.25),
    ("validation", "test"): (0.60, 0.15, 0.25),
}
"""Which fractions of the train table become train, validation and test, by the splits that have no table."""


class TableSource(Settings):
    """A task of one's own, as a study's configuration gives it.

    Attributes:
        train: URI of the training table (see :mod:`pitune.assets`): one file, or a folder of files of one kind.
        validation: URI of the validation table; without it, a fixed part of ``train`` (see :data:`SHARES`).
        test: the same for the test table.
        text: the column with the text; of webdataset shards: a member's extension (``txt``) or a field of ``.json``.
        label: the column with the label value; of shards: ``cls``, or a field of ``.json``.
        key: the column that names an example for good; without it: split and row, ``train-000123``.
        labels: for each label value, in the order of the label indices, the text that describes it to the backbone.
        metric: a name in :data:`pitune.tasks.metrics.METRICS`.
    """

    model_config = ConfigDict(coerce_numbers_to_str=True)

    train: str
    validation: str | None = None
    test: str | None = None
    text: str = "text"
    label: str = "label"
    key: str | None = None
    labels: dict[str, str] = Field(min_length=2)
    metric: str = "accuracy"

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
    def _differ(cls, labels: dict[str, str]) -> dict[str, str]:
        if not all(text.strip() for text in labels.values()):
            raise ValueError("a label's text is empty; describe the label in a few words")
        if len(set(labels.values())) < len(labels):
            raise ValueError("two labels have the same text; no model can tell them apart")
        return labels


@dataclass(frozen=True)
class Row:
    """One line of a table: a key, a text, a label value, and where it stands (``file: row 3``), for errors."""

    key: str
    text: str
    label: str
    place: str


def table_task(name: str, source: TableSource) -> Task:
    """Build the task that ``source`` describes.

    Raises:
        PituneError: a table cannot be had or read, lacks a column, has an unknown label value, an empty text or a key
            twice, or a split lacks a class.
    """
    uris = {"train": source.train, "validation": source.validation, "test": source.test}
    tables = {
        split: read_rows(fetch(uri).path, split, source.text, source.label, source.key)
        for split, uri in uris.items()
        if uri is not None
    }
    missing = tuple(split for split in SPLITS if split not in tables)
    return build_task(name, source.metric, source.labels, {**tables, **split_rows(tables["train"], missing)})


def build_task(name: str, metric: str, labels: Mapping[str, str], rows: Mapping[str, list[Row]]) -> Task:
    """Build a text classification task: drop duplicates (see above), check everything, take the fingerprint.

    Args:
        name: the task's name.
        metric: a name in :data:`pitune.tasks.metrics.METRICS`.
        labels: each label value's text; the order gives the label indices.
        rows: the rows of each split.

    Raises:
        PituneError: see :func:`table_task`.
    """
    if NAME.fullmatch(name) is None:
        raise PituneError(f"task {name!r}: a task's name has lower-case letters, digits, _ and - only")
    index = {label: i for i, label in enumerate(labels)}
    checked = {split: [_example(name, row, index) for row in rows[split]] for split in SPLITS}
    _check_keys(name, checked)
    splits = without_duplicates(checked)
    _check_classes(name, tuple(labels), splits)
    facts = {"name": name, "modality": "text", "metric": metric, "labels": list(labels.items())}
    content = {split: [[e.key, e.text, e.label] for e in examples] for split, examples in splits.items()}
    fingerprint = fingerprint_of({"task": facts, "splits": content})
    return Task(name, "text", metric, tuple(labels), tuple(labels.values()), splits, fingerprint)


def without_duplicates(splits: Mapping[str, list[Example]]) -> dict[str, tuple[Example, ...]]:
    """Return the splits, each text only in its first place of test, validation, train; test itself is kept whole."""
    seen = {example.text for example in splits["test"]}
    kept = {"test": tuple(splits["test"])}
    for split in ("validation", "train"):
        chosen = []
        for example in splits[split]:
            if example.text not in seen:
                seen.add(example.text)
                chosen.append(example)
        kept[split] = tuple(chosen)
    return {split: kept[split] for split in SPLITS}


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
    text = row.text.strip()
    if not text:
        raise PituneError(f"{row.place}: the text is empty; remove the row or fill it in")
    if row.label not in index:
        raise PituneError(f"{row.place}: label {row.label!r} is none of task {task}'s labels, {', '.join(index)}")
    return Example(row.key, text, index[row.label])


def _check_keys(task: str, splits: Mapping[str, list[Example]]) -> None:
    seen: set[str] = set()
    for example in (example for examples in splits.values() for example in examples):
        if example.key in seen:
            raise PituneError(f"task {task}: two examples have the key {example.key!r}; a key names one example")
        seen.add(example.key)


def _check_classes(task: str, labels: tuple[str, ...], splits: Mapping[str, tuple[Example, ...]]) -> None:
    for split, examples in splits.items():
        present = {example.label for example in examples}
        for index, label in enumerate(labels):
            if index not in present:
                raise PituneError(
                    f"task {task}: its {split} split has no example of class {label!r}; it needs one or more"
                )


# --- reading -------------------------------------------------------------------------------------------------------


def read_rows(path: Path, split: str, text: str, label: str, key: str | None = None) -> list[Row]:
    """Read a table's rows.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet`` or ``.tar`` file, or a folder of files of one such kind.
        split: what keys begin with where there is no key column.
        text: the column of the text.
        label: the column of the label value.
        key: the column of the key; webdataset shards have keys of their own.

    Raises:
        PituneError: the file cannot be read or lacks a column or a value.
    """
    rows: list[Row] = []
    for file in _table_files(path):
        read = READERS[file.suffix]
        for number, record in enumerate(read(file, [text, label, *([key] if key else [])]), start=1):
            place = f"{file}: row {number}"
            own = record.get("__key__") if key is None else _value(record, key, place)
            rows.append(
                Row(own or f"{split}-{len(rows):06d}", _value(record, text, place), _value(record, label, place), place)
            )
    if not rows:
        raise PituneError(f"{path}: has no rows")
    return rows


def _table_files(path: Path) -> list[Path]:
    files = sorted(file for file in path.iterdir() if file.suffix in READERS) if path.is_dir() else [path]
    kinds = {file.suffix for file in files}
    if len(kinds) != 1 or not kinds <= set(READERS):
        found = ", ".join(sorted(kinds)) or "nothing of that"
        raise PituneError(f"{path}: a table is a file, or files of one kind, among {', '.join(READERS)}; found {found}")
    return files


def _value(record: Mapping[str, str | None], name: str, place: str) -> str:
    value = record.get(name)
    if value is None:
        raise PituneError(f"{place}: has no {name!r}")
    return value


def _arrow_records(
    read: Callable[[Path, list[str]], pa.Table],
) -> Callable[[Path, list[str]], Iterator[dict[str, Any]]]:
    """Turn a function that reads an Arrow table into one that gives its records as text."""

    def records(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
        """Yield each record's columns as text."""
        try:
            table = read(file, columns)
            for column in columns:
                if column not in table.column_names:
                    raise PituneError(f"{file}: has no column {column!r}; it has {', '.join(table.column_names)}")
            texts = [table[column].cast(pa.string()).to_pylist() for column in columns]
        except (pa.ArrowException, OSError) as error:
            raise PituneError(f"{file}: cannot be read as {file.suffix[1:]} ({reason(error)})") from error
        for values in zip(*texts, strict=True):
            yield dict(zip(columns, values, strict=True))

    return records


def _read_csv(file: Path, columns: list[str]) -> pa.Table:
    from pyarrow import csv

    # Every column as text: a label "01" must not become 1.
    return csv.read_csv(
        file,
        parse_options=csv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ",", newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
    )


def _read_json(file: Path, columns: list[str]) -> pa.Table:
    from pyarrow import json as arrow_json

    return arrow_json.read_json(file, parse_options=arrow_json.ParseOptions(newlines_in_values=False))


def _read_parquet(file: Path, columns: list[str]) -> pa.Table:
    from pyarrow import parquet

    schema = parquet.read_schema(file)
    if not set(columns) <= set(schema.names):
        return schema.empty_table()  # for the error, which names the columns there are
    return parquet.read_table(file, columns=columns)


def _shard_records(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Give a webdataset shard's samples: the members' texts by extension, and the fields of a ``.json`` member.

    Only text and JSON are decoded: webdataset's own decoders, which would also read pickles, are not used.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander  # brings torch: 1.6 s

    try:
        with file.open("rb") as stream:
            for sample in group_by_keys(tar_file_expander([{"url": str(file), "stream": stream}])):
                yield _sample_fields(sample, columns)
    except (OSError, ValueError, EOFError, TarError) as error:
        raise PituneError(f"{file}: cannot be read as a webdataset shard ({reason(error)})") from error


def _sample_fields(sample: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"__key__": str(sample["__key__"])}
    if "json" in sample:
        fields |= {name: _as_text(value) for name, value in json.loads(sample["json"]).items()}
    fields |= {name: sample[name].decode().strip() for name in columns if isinstance(sample.get(name), bytes)}
    return fields


def _as_text(value: object) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value)


READERS: dict[str, Callable[[Path, list[str]], Iterator[dict[str, Any]]]] = {
    ".csv": _arrow_records(_read_csv),
    ".tsv": _arrow_records(_read_csv),
    ".jsonl": _arrow_records(_read_json),
    ".parquet": _arrow_records(_read_parquet),
    ".tar": _shard_records,
}
"""What reads a file, by its ending: each takes the file and the columns, and gives its records as text."""
