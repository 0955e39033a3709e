"""Tasks as CoOp splits them (arXiv 2109.01134): ``split_zhou_<Dataset>.json`` and a folder of pictures beside it.

The file has three lists, ``train``, ``val`` and ``test``, of ``[path, label index, class name]``; paths are relative to
the folder of pictures. A ``val`` that is empty or not there is held out of ``train``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, TypeAdapter

from pitune.assets import fetch
from pitune.errors import PituneError
from pitune.tasks.building import held_out
from pitune.tasks.readers import Row, below
from pitune.tasks.sources import Read, TaskSource, key_of, named, read_json

NAMES = {"train": "train", "validation": "val", "test": "test"}
"""What the file calls each split."""
Entry = tuple[str, int, str]
"""A picture's path, its label's index, its class's name."""
FORM = TypeAdapter(dict[str, list[Entry]])


class CoopSource(TaskSource):
    """A task whose splits and classes are those of a file of CoOp's.

    Attributes:
        split: the file's URI.
        images: the folder of pictures, relative to the file's; None: the file's own.
        labels: the classes' texts, in the order of their indices; None: their names, with spaces for underscores.
    """

    uris: ClassVar[tuple[str, ...]] = ("split",)
    kind: Literal["coop"] = "coop"
    split: str
    images: str | None = None
    labels: tuple[str, ...] | None = Field(None, min_length=2)

    def read(self) -> Read:
        """Read the file, and the hashes of the pictures."""
        path = fetch(self.split).path
        lists = read_json(path, FORM, "lists of [path, label index, class name], one for each of train, val and test")
        for name in ("train", "test"):
            if not lists.get(name):
                raise PituneError(f"{path}: has nothing in its {name!r}; it lists the pictures of train and test")
        labels = named(_names(path, lists), self.labels, path)
        values, folder = list(labels), (path.parent / (self.images or ".")).absolute()
        rows: dict[str, list[Row]] = {split: [] for split in NAMES}
        for split, name in NAMES.items():
            for number, (picture, label, _) in enumerate(lists.get(name, []), 1):
                place = _place(path, name, number)
                found = below(folder, picture, place)
                rows[split].append(Row(key_of(split, picture), None, values[label], place, found))
        if not rows["validation"]:
            rows["train"], rows["validation"] = held_out(rows["train"])
        return labels, rows


def _names(path: Path, lists: Mapping[str, list[Entry]]) -> list[str]:
    """Return the classes' names, in the order of their indices.

    Raises:
        PituneError: an index has two names, or some lower one has none.
    """
    names: dict[int, str] = {}
    for split in NAMES.values():
        for number, (_, label, name) in enumerate(lists.get(split, []), 1):
            if names.setdefault(label, name) != name:
                raise PituneError(
                    f"{_place(path, split, number)}: class {label} is {name!r}, and was {names[label]!r} before; "
                    "an index has one name"
                )
    for index, found in enumerate(sorted(names)):
        if index != found:
            raise PituneError(f"{path}: has a class {found} and no class {index}; indices begin at 0, without gaps")
    return [names[index] for index in range(len(names))]


def _place(path: Path, split: str, number: int) -> str:
    return f"{path}: {split}, entry {number}"
