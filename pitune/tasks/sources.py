"""Where a task comes from, as a study's configuration says it: what all kinds of sources have.

A kind of source is a file beside this one, and a line in ``SOURCES`` (:mod:`pitune.config.tasks`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from pitune.assets import located
from pitune.errors import PituneError, reason
from pitune.settings import Settings, wrong
from pitune.tasks.building import build_task
from pitune.tasks.metrics import METRICS
from pitune.tasks.readers import Row
from pitune.tasks.task import PLAIN, Task, has_a_place

T = TypeVar("T")

Read = tuple[Mapping[str, str] | None, Mapping[str, list[Row]]]
"""What is read of a task: each label value's text, in the order of the indices (None: it is retrieval), and the rows of
its splits."""


class TaskSource(Settings, ABC):
    """A task of one's own, as a study's configuration gives it.

    Attributes:
        uris: the fields that are URIs.
        kind: of source.
        templates: sentences for a label's text, each with one ``{}`` for it: ``a photo of a {}.``; what the backbone
            alone makes of a label is the mean over all of them.
        metric: a name in :data:`pitune.tasks.metrics.METRICS`.
        near_duplicates: by how many of 64 bits the perceptual hashes of near-duplicates differ at most. Pictures of
            train and validation that are near one of test are dropped, and those of train near one of validation. 6 is
            right for drawings and pictures off the web; None (nothing is dropped) where all are alike, as digits are:
            :mod:`pitune.tasks.duplicates` has the measurements.
        classes: which the task has: the first half, ``base``, or the second, ``new``, in the order of their indices; of
            an odd number ``base`` has one more (CoCoOp, arXiv 2203.05557, section 4.1). None: all.
    """

    uris: ClassVar[tuple[str, ...]]
    model_config = ConfigDict(coerce_numbers_to_str=True)

    kind: str
    templates: tuple[str, ...] = Field(PLAIN, min_length=1)
    metric: str = "accuracy"
    near_duplicates: int | None = Field(None, ge=0, le=16)
    classes: Literal["base", "new"] | None = None

    @abstractmethod
    def read(self) -> Read:
        """Read the labels and the rows.

        Raises:
            PituneError: the data cannot be had, or are not of the form that they should have.
        """

    def task(self, name: str) -> Task:
        """Build the task under this name.

        Raises:
            PituneError: as :meth:`read` and :func:`pitune.tasks.building.build_task`.
        """
        labels, rows = self.read()
        if labels is not None and self.classes is not None:
            labels, rows = _half(name, labels, rows, self.classes)
        return build_task(name, self.metric, labels, rows, self.near_duplicates, self.templates)

    def located(self) -> Self:
        """Return the source for a process with another working folder: with absolute paths."""
        given = {name: getattr(self, name) for name in self.uris}
        return self.model_copy(update={name: located(uri) for name, uri in given.items() if uri is not None})

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"{metric!r} is no metric; write one of {', '.join(METRICS)}")
        return metric

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            has_a_place(template)
        if len(set(templates)) < len(templates):
            raise ValueError("a template is there twice; name each once")
        return templates


def _half(task: str, labels: Mapping[str, str], rows: Mapping[str, list[Row]], classes: str) -> Read:
    """Return half of the labels and the rows of these; rows of labels that there are not stay, to be refused.

    Raises:
        PituneError: a row may have several labels.
    """
    if any(isinstance(row.label, tuple) for held in rows.values() for row in held):
        raise PituneError(f"task {task}: its examples have several labels, of both halves; leave classes out")
    middle = ceil(len(labels) / 2)
    chosen = list(labels)[:middle] if classes == "base" else list(labels)[middle:]
    others = set(labels) - set(chosen)
    kept = {split: [row for row in held if row.label not in others] for split, held in rows.items()}
    return {label: labels[label] for label in chosen}, kept


# --- what formats that name their classes share ----------------------------------------------------------------------


def named(names: Sequence[str], texts: Sequence[str] | None, place: Path) -> dict[str, str]:
    """Return the text of each class: its name with spaces for underscores, or the one of ``texts``.

    Classes of the same name, of which ImageNet has some, are told apart by their indices.

    Args:
        names: of the classes, in the order of the indices.
        texts: in the same order; None: the names serve.
        place: of the names, for errors.

    Raises:
        PituneError: a class has no name or an empty text, or there is another number of texts.
    """
    if not all(name.strip() for name in names):
        raise PituneError(f"{place}: class {[name.strip() for name in names].index('')} has no name; give it one")
    if texts is not None and len(texts) != len(names):
        raise PituneError(f"{place}: has {len(names)} classes, labels has {len(texts)} texts; give one for each class")
    if texts is not None and not all(text.strip() for text in texts):
        raise PituneError(f"{place}: labels has an empty text; describe the class in a few words")
    values = [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    return dict(zip(values, texts or [name.replace("_", " ").strip() for name in names], strict=True))


def key_of(split: str, path: str) -> str:
    """Return the key of a picture of a split: its path; such paths may start anew in other splits than train."""
    return path if split == "train" else f"{split}/{path}"


def read_json(path: Path, form: TypeAdapter[T], what: str) -> T:
    """Read a JSON file of a known form.

    Args:
        path: the file.
        form: what it holds.
        what: the same in words, for errors.

    Raises:
        PituneError: it cannot be read, or holds something else.
    """
    try:
        return form.validate_json(path.read_bytes())
    except OSError as error:
        raise PituneError(f"{path}: cannot be read ({reason(error)})") from error
    except ValidationError as error:
        raise PituneError(f"{path}: is not {what} ({_wrong(error)})") from error


def _wrong(error: ValidationError) -> str:
    problem: Any = error.errors(include_url=False, include_input=False)[0]
    return str(problem["msg"]) if problem["type"] == "json_invalid" else wrong(error)
