"""Tasks out of tables, webdataset shards and folders of pictures, which :mod:`pitune.tasks.readers` reads."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pitune.assets import fetch
from pitune.tasks.building import split_rows
from pitune.tasks.readers import Columns, read_rows
from pitune.tasks.sources import Read, TaskSource
from pitune.tasks.task import SPLITS


class TableSource(TaskSource):
    """A task out of tables, shards or folders of pictures.

    Attributes:
        train: URI of the training table (see :mod:`pitune.assets`): one file, a folder of files of one kind, or a
            folder of pictures, which has a sub-folder for each label value and no columns.
        validation: URI of the validation table; without it, a fixed part of ``train`` (see
            :mod:`pitune.tasks.building`).
        test: the same for the test table.
        text: the column with the text; of webdataset shards: a member's extension (``txt``) or a field of ``.json``;
            None: ``text``, or none where there is an ``image``.
        image: the column with the picture: a path inside the table's folder; in parquet also bytes, or a struct
            ``{bytes, path}``; of shards: the members' extensions (``jpg``, ``jpg;png``); None: no pictures.
        label: the column with the label value; of shards: ``cls``, or a field of ``.json``. A list of values, which may
            be empty, makes it a multilabel task.
        separator: what stands between several label values in one text (``|`` in ``dog|person``); it makes a multilabel
            task, too, of which an empty text has no label.
        key: the column that names an example for good; without it: split and row, ``train-000123``.
        labels: for each label value, in the order of the label indices, the text that describes it to the backbone.
        caption: makes it a retrieval task, with neither ``label`` nor ``labels``: the column with the text that is to
            be found, for each example, among those of all examples; of shards as for ``text``.
    """

    uris: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    kind: Literal["table"] = "table"
    train: str
    validation: str | None = None
    test: str | None = None
    text: str | None = None
    image: str | None = None
    label: str = "label"
    separator: str | None = Field(None, min_length=1)
    key: str | None = None
    labels: dict[str, str] | None = Field(None, min_length=2)
    caption: str | None = None

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

    @model_validator(mode="after")
    def _has_candidates(self) -> Self:
        if self.labels is None and self.caption is None:
            raise ValueError("has no labels; give each label value's text, or, for retrieval, the column caption")
        if self.caption is not None and (self.labels is not None or "label" in self.model_fields_set):
            raise ValueError("has a caption, which is found among all captions, and label or labels; leave one out")
        if self.caption is not None and self.separator is not None:
            raise ValueError("has a caption and a separator of labels; leave one out")
        if self.caption is not None and self.classes is not None:
            raise ValueError("has a caption and classes; captions are no classes, so leave one out")
        return self

    def read(self) -> Read:
        """Read the tables; what a split that has none is cut from is the train table."""
        columns = Columns(self.label, self.text, self.image, self.key, self.caption, self.separator)
        uris = {split: getattr(self, split) for split in SPLITS}
        tables = {split: read_rows(fetch(uri).path, split, columns) for split, uri in uris.items() if uri is not None}
        missing = tuple(split for split in SPLITS if split not in tables)
        return self.labels, {**tables, **split_rows(tables["train"], missing)}
