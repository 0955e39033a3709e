"""Tasks as ELEVATER lays them out (arXiv 2204.08790), in the forms of the package vision-datasets that it uses.

A registry, ``vision_datasets.json``, is a list of data sets: each has a ``name``, a ``root_folder`` beside the
registry, and for ``train``, ``val`` and ``test`` an ``index_path``. There are two forms of index, by its ``format``:

- ``iris``, where none is named: lines ``train.zip@path label``, ``train.zip@path 0,4`` where a picture may have several
  labels, and a ``labelmap`` with a class's name in each line;
- ``coco``: JSON with ``images`` (``file_name``, ``zip_file``), ``annotations`` and ``categories``.

A picture's path is relative to the root folder; what follows ``.zip@`` is one inside an archive, and is read from
there. Where there is no ``val``, it is held out of ``train``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pitune.assets import fetch
from pitune.errors import PituneError, reason
from pitune.settings import wrong
from pitune.tasks.building import held_out
from pitune.tasks.pictures import Picture
from pitune.tasks.readers import Row, below, safe
from pitune.tasks.sources import Read, TaskSource, key_of, named, read_json
from pitune.tasks.zips import PictureZip

TYPES = {"classification_multiclass": False, "classification_multilabel": True}
"""What vision-datasets calls a classification, and whether a picture may have several labels; newer versions of it say
``image_`` before that."""
IN_ZIP = ".zip@"


class Index(BaseModel):
    """What the registry says of a split; more than this is passed over, here and below."""

    index_path: str


class Entry(BaseModel):
    """What the registry says of a data set."""

    name: str
    type: str
    version: int = 1
    format: str = "iris"
    root_folder: str = ""
    labelmap: str | None = None
    train: Index
    val: Index | None = None
    test: Index

    @property
    def has_several(self) -> bool:
        """Whether a picture may have several labels."""
        return TYPES[self.plain_type]

    @property
    def plain_type(self) -> str:
        """The type as older versions say it."""
        return self.type.lower().removeprefix("image_")


class Image(BaseModel):
    """A picture in a COCO index."""

    id: int
    file_name: str
    zip_file: str | None = None


class Annotation(BaseModel):
    """A label of a picture in a COCO index."""

    image_id: int
    category_id: int


class Category(BaseModel):
    """A class in a COCO index; classes come in the order of their ids."""

    id: int
    name: str


class Coco(BaseModel):
    """A COCO index."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class Listed(NamedTuple):
    """A picture that an index lists: its path, its labels' indices, and where it stands, for errors."""

    path: str
    labels: list[int]
    place: str


REGISTRY = TypeAdapter(list[dict[str, Any]])
COCO = TypeAdapter(Coco)


class ElevaterSource(TaskSource):
    """A task whose splits and classes are those of a data set of ELEVATER's.

    Attributes:
        registry: URI of the registry; the folders that it names lie beside it.
        dataset: a name in the registry; of several versions, the newest.
        labels: the classes' texts, in the order of their indices; None: their names, with spaces for underscores.
    """

    uris: ClassVar[tuple[str, ...]] = ("registry",)
    kind: Literal["elevater"] = "elevater"
    registry: str
    dataset: str
    labels: tuple[str, ...] | None = Field(None, min_length=2)

    def read(self) -> Read:
        """Read the registry and the indices, and the hashes of the pictures."""
        registry = fetch(self.registry).path
        entry = _entry(registry, self.dataset)
        root = registry.absolute().parent / safe(entry.root_folder, f"{registry}: {entry.name}")
        paths = {"train": entry.train, "validation": entry.val, "test": entry.test}
        files = {
            split: root / safe(index.index_path, f"{registry}: {entry.name}")
            for split, index in paths.items()
            if index is not None
        }
        names, lists = (_coco if entry.format.lower() == "coco" else _iris)(registry, root, entry, files)
        labels = named(names, self.labels, registry)
        values = list(labels)
        with ExitStack() as opened:
            pictures = _Pictures(root, opened)
            rows = {
                split: [_row(split, one, values, entry.has_several, pictures) for one in listed]
                for split, listed in lists.items()
            }
        if "validation" not in rows:
            rows["train"], rows["validation"] = held_out(rows["train"])
        return labels, rows


def _row(split: str, listed: Listed, values: Sequence[str], has_several: bool, pictures: _Pictures) -> Row:
    """Return the row of a picture.

    Raises:
        PituneError: it has several labels, or none, and pictures of its kind of task have one; or it is not there.
    """
    labels = tuple(values[label] for label in listed.labels)
    if not has_several and not labels:
        raise PituneError(f"{listed.place} has no label; annotate it or take it out")
    if not has_several and len(labels) > 1:
        raise PituneError(f"{listed.place} has several labels, {', '.join(labels)}; one of this kind of task has one")
    label = labels if has_several else labels[0]
    return Row(key_of(split, listed.path), None, label, listed.place, pictures.at(listed))


Lists = tuple[list[str], dict[str, list[Listed]]]
"""The classes' names, and what each split lists."""


def _entry(registry: Path, name: str) -> Entry:
    """Return what the registry says of the data set of this name.

    Raises:
        PituneError: it has none, or one of which pitune can make no task.
    """
    known = read_json(registry, REGISTRY, "a list of data sets")
    found = [one for one in known if one.get("name") == name]
    if not found:
        there = ", ".join(str(one.get("name")) for one in known)
        raise PituneError(f"{registry}: has no data set {name!r}; it has {there}")
    try:
        entry = max((Entry.model_validate(one) for one in found), key=lambda one: one.version)
    except ValidationError as error:
        raise PituneError(f"{registry}: {name}: {wrong(error)}") from error
    if entry.plain_type not in TYPES:
        raise PituneError(f"{registry}: {name}: its type is {entry.type}; pitune reads {' and '.join(TYPES)}")
    if entry.format.lower() not in ("iris", "coco"):
        raise PituneError(f"{registry}: {name}: its format is {entry.format}; pitune reads iris and coco")
    return entry


class _Pictures:
    """The pictures of a data set: files below its root folder, and members of zip archives there, each opened once."""

    def __init__(self, root: Path, opened: ExitStack) -> None:
        self.root, self.opened = root, opened
        self.zips: dict[str, PictureZip] = {}

    def at(self, listed: Listed) -> Picture:
        archive, in_zip, member = listed.path.partition(IN_ZIP)
        if not in_zip:
            return below(self.root, listed.path, listed.place)
        if archive not in self.zips:
            path = self.root / safe(f"{archive}.zip", listed.place)
            self.zips[archive] = self.opened.enter_context(PictureZip(path, listed.place))
        return self.zips[archive].picture(member, listed.place)


# --- the two forms of index ------------------------------------------------------------------------------------------


def _iris(registry: Path, root: Path, entry: Entry, files: dict[str, Path]) -> Lists:
    if entry.labelmap is None:
        raise PituneError(f"{registry}: {entry.name}: has no labelmap, which names the classes; add one")
    names = _lines(root / safe(entry.labelmap, f"{registry}: {entry.name}"))
    return names, {split: _listed(file, len(names)) for split, file in files.items()}


def _listed(file: Path, classes: int) -> list[Listed]:
    """Read the lines ``path label`` or ``path label,label`` of an index; only paths may have spaces."""
    found = []
    for number, line in enumerate(_lines(file), 1):
        if not line:
            continue
        path, _, last = line.rpartition(" ")
        place, labels = f"{file}: line {number}", last.split(",")
        if not path.strip() or not all(label.isdecimal() and len(label) < 10 for label in labels):
            raise PituneError(f"{place}: is {line!r:.80}; a line is the path of a picture and its label's index")
        for label in labels:
            if int(label) >= classes:
                raise PituneError(f"{place}: label {label} is out of range; the labelmap names {classes} classes")
        found.append(Listed(path.strip(), [int(label) for label in labels], place))
    return found


def _lines(file: Path) -> list[str]:
    """Return a file's lines without white space around, and without empty ones at the end."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, ValueError) as error:
        raise PituneError(f"{file}: cannot be read ({reason(error)})") from error


def _coco(registry: Path, root: Path, entry: Entry, files: dict[str, Path]) -> Lists:
    indices = {split: read_json(file, COCO, "a COCO index") for split, file in files.items()}
    classes = {split: sorted((one.id, one.name) for one in index.categories) for split, index in indices.items()}
    for split, file in files.items():
        if classes[split] != classes["train"]:
            raise PituneError(f"{file}: its categories are not those of {files['train'].name}; make them the same")
    ids = [number for number, _ in classes["train"]]
    return [name for _, name in classes["train"]], {
        split: _annotated(files[split], index, ids) for split, index in indices.items()
    }


def _annotated(file: Path, index: Coco, ids: Sequence[int]) -> list[Listed]:
    """Return what a COCO index lists, in the order of the pictures' ids."""
    places = {number: place for place, number in enumerate(ids)}
    labels: dict[int, list[int]] = defaultdict(list)
    for one in index.annotations:
        if one.category_id not in places:
            raise PituneError(f"{file}: picture {one.image_id} is of category {one.category_id}, which there is not")
        labels[one.image_id].append(places[one.category_id])
    found = []
    for image in sorted(index.images, key=lambda image: image.id):
        path = f"{image.zip_file}@{image.file_name}" if image.zip_file else image.file_name
        found.append(Listed(path, labels[image.id], f"{file}: picture {image.id}"))
    return found
