"""Rows out of what data come in: csv, tsv, jsonl and parquet files, webdataset shards, and folders of pictures.

**Pictures** are not decoded here, but their bytes are hashed. In a csv, tsv or jsonl file a picture is the path of a
file, relative to the table's folder and inside it; in parquet that, or the bytes, or Hugging Face's struct
``{bytes, path}``; in a shard, which may not be compressed, a member. They stay where they are: nothing is unpacked or
copied. A table that is fetched alone (``hf:datasets/OWNER/NAME#a.csv``) has no pictures beside it: name its folder.

**A folder of pictures** has a sub-folder for each label value and no table; the picture files lie at any depth below
those, and other files and hidden ones are left out. Its keys are the paths relative to the folder, ``cats/1.png``;
those of ``validation`` and ``test`` begin with the split, ``test/cats/1.png``: file names often start anew in each.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pitune.assets.hub import PICTURE_ENDINGS
from pitune.errors import PituneError, reason
from pitune.tasks.pictures import Picture
from pitune.tasks.shards import ROW, shard_records

PICTURE_ROWS = 64
"""How many rows of a parquet table of pictures are held at a time."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    Attributes:
        label: of the label value.
        text: of the text; None: ``text``, or no column where there is one of pictures.
        image: of the picture; None: there are no pictures. Of shards: the members' extensions, ``jpg;png``.
        key: of the key; None: webdataset shards have keys of their own, others get ``train-000123``.
        caption: of the caption; it is the label value, instead of ``label``.
        separator: what stands between several label values; None: the column has one, or a list of them.
    """

    label: str
    text: str | None = None
    image: str | None = None
    key: str | None = None
    caption: str | None = None
    separator: str | None = None

    @property
    def answer(self) -> str:
        """The column of what is to be told of an example."""
        return self.label if self.caption is None else self.caption


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        key: names it.
        text: None where the table has no text column.
        label: a label value; of a multilabel task all of them; of a retrieval task the caption.
        place: where it stands, for errors: ``file: row 3``.
        picture: None where the table has no pictures.
    """

    key: str
    text: str | None
    label: str | tuple[str, ...]
    place: str
    picture: Picture | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """All label values, of which most tasks' rows have one."""
        return (self.label,) if isinstance(self.label, str) else self.label


def read_rows(path: Path, split: str, columns: Columns) -> list[Row]:
    """Read a table's rows.

    Args:
        path: a ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet`` or ``.tar`` file, a folder of files of one such kind, or
            a folder of pictures.
        split: what keys begin with where there is no key column.
        columns: the columns to read; a folder of pictures has none.

    Raises:
        PituneError: the file cannot be read or lacks a column, a value or a picture.
    """
    files = _table_files(path)
    pictures = [] if files else _pictures_below(path)
    if pictures:
        return _tree_rows(path, pictures, split, columns)
    _check_kinds(path, files)
    text = "text" if columns.text is None and columns.image is None else columns.text
    names = [name for name in (text, columns.answer, columns.key) if name is not None]
    rows: list[Row] = []
    order: list[int] = []
    for file in files:
        for number, record in enumerate(READERS[file.suffix](file, names, columns.image), start=1):
            place = f"{file}: row {number}"
            own = record.get("__key__") if columns.key is None else _value(record, columns.key, place)
            key = own or f"{split}-{len(rows):06d}"
            body = None if text is None else _value(record, text, place)
            picture = None if columns.image is None else _picture(record, columns.image, file, number, place)
            order.append(record.get(ROW, len(rows)))
            rows.append(Row(key, body, _label(record, columns, place), place, picture))
    if not rows:
        raise PituneError(f"{path}: has no rows")
    return [rows[index] for index in sorted(range(len(rows)), key=order.__getitem__)]


def _table_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix in READERS) if path.is_dir() else [path]


def _check_kinds(path: Path, files: list[Path]) -> None:
    kinds = {file.suffix for file in files}
    if len(kinds) != 1 or not kinds <= set(READERS):
        found = ", ".join(sorted(kinds)) or "nothing of that"
        raise PituneError(
            f"{path}: a table is a file, or files of one kind, among {', '.join(READERS)}, or a folder with pictures "
            f"in a sub-folder for each label; found {found}"
        )


def _value(record: Mapping[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if value is None:
        raise PituneError(f"{place}: has no {name!r}")
    if isinstance(value, list):
        raise PituneError(f"{place}: its {name!r} is a list; only labels come in lists, so make it a text")
    return str(value)


def _label(record: Mapping[str, Any], columns: Columns, place: str) -> str | tuple[str, ...]:
    """Return the label value; of a list, or of what a separator parts, all of them."""
    value = record.get(columns.answer)
    if isinstance(value, list) and columns.caption is None:
        return tuple(map(str, value))
    text = _value(record, columns.answer, place)
    if columns.separator is None:
        return text
    return tuple(part.strip() for part in text.split(columns.separator)) if text.strip() else ()


# --- pictures ------------------------------------------------------------------------------------------------------


def _picture(record: Mapping[str, Any], name: str, file: Path, number: int, place: str) -> Picture:
    """Return the picture that a record has in its image column, as bytes, as a path, or found already."""
    value = record.get(name)
    if isinstance(value, dict):  # Hugging Face's; the path beside bytes is only the name that they once had
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise PituneError(f"{place}: has no {name!r}")
    if not value:
        raise PituneError(f"{place}: its {name!r} is empty; remove the row or fill it in")
    if isinstance(value, Picture):
        return value
    if isinstance(value, bytes):
        return Picture(str(file.absolute()), hashlib.sha256(value).hexdigest(), cell=(name, number - 1))
    if not isinstance(value, str):
        raise PituneError(f"{place}: its {name!r} is {value!r:.60}, neither the path of a picture nor its bytes")
    return below(file.absolute().parent, value, place)


def below(folder: Path, path: str, place: str) -> Picture:
    """Return the picture file that a path below a folder names.

    Args:
        folder: the absolute path of the folder.
        path: relative to it.
        place: where it is named, for errors.

    Raises:
        PituneError: it leads outside, or as :func:`whole_file`.
    """
    return whole_file(folder / safe(path, place), f"{place}: picture {path!r}")


def safe(path: str, place: str) -> str:
    """Return a relative path in plain form.

    Raises:
        PituneError: it leads outside of what it is relative to; ``place`` is where it is named.
    """
    inside = posixpath.normpath(path)
    if inside.startswith("/") or inside.split("/")[0] == ".." or "\0" in inside:
        raise PituneError(f"{place}: {path!r} leads outside its folder; give a path inside it")
    return inside


def whole_file(file: Path, place: str) -> Picture:
    """Return the picture that a file is.

    Args:
        file: its absolute path.
        place: where it is named, for errors.

    Raises:
        PituneError: there is no such file, it is empty or cannot be read.
    """
    try:
        if not file.is_file():  # opening anything else could wait for ever
            raise PituneError(f"{place}: there is no file {file}")
        if not file.stat().st_size:
            raise PituneError(f"{place}: the file is empty")
        with file.open("rb") as stream:
            return Picture(str(file), hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise PituneError(f"{place}: cannot be read ({reason(error)})") from error


def _pictures_below(folder: Path) -> list[str]:
    """Return the picture files in and below a folder, hidden ones left out, as sorted relative POSIX paths."""
    found = []
    for top, folders, names in os.walk(folder, onerror=_cannot_be_listed, followlinks=True):
        place = Path(top)
        # A link to a folder that it lies in would be followed for ever.
        around = place.resolve()
        folders[:] = [one for one in folders if one[0] != "." and not around.is_relative_to((place / one).resolve())]
        wanted = [name for name in names if name.lower().endswith(PICTURE_ENDINGS) and name[0] != "."]
        found += [(place / name).relative_to(folder).as_posix() for name in wanted]
    return sorted(found)


def _cannot_be_listed(error: OSError) -> None:
    raise PituneError(f"{error.filename}: cannot be listed ({reason(error)})") from error


def _tree_rows(folder: Path, pictures: list[str], split: str, columns: Columns) -> list[Row]:
    """Return the rows of a folder of pictures: the first folder on the way to a picture is its label value."""
    for field in ("text", "image", "key", "caption", "separator"):
        if getattr(columns, field) is not None:
            raise PituneError(f"{folder}: is a folder of pictures, which has no columns; leave {field} out")
    rows = []
    for name in pictures:
        label, _, rest = name.partition("/")
        if not rest:
            raise PituneError(f"{folder / name}: lies in no label's folder; move it into one, or out of {folder}")
        if not name.isprintable():
            raise PituneError(f"{folder}: {name!r} is no name in UTF-8, or has control characters; rename it")
        key = name if split == "train" else f"{split}/{name}"
        place = str(folder / name)
        rows.append(Row(key, None, label, place, whole_file(folder.absolute() / name, place)))
    return rows


# --- tables --------------------------------------------------------------------------------------------------------

Reader = Callable[[Path, list[str], str | None], Iterator[dict[str, Any]]]
"""Takes a file, its columns of text and that of its pictures; see :data:`READERS`."""


def _arrow_records(read: Callable[[Path, list[str], bool], Iterator[pa.Table]]) -> Reader:
    """Turn a function that reads Arrow tables, of pictures or not, into one that gives their records as text."""

    def records(file: Path, names: list[str], image: str | None) -> Iterator[dict[str, Any]]:
        """Yield each record's columns as text, or as lists of texts, and that of the picture as it is."""
        wanted = names if image is None else [*names, image]
        try:
            for table in read(file, wanted, image is not None):
                for column in wanted:
                    if column not in table.column_names:
                        raise PituneError(f"{file}: has no column {column!r}; it has {', '.join(table.column_names)}")
                columns = [_texts(table[name]) for name in names]
                pictures = [] if image is None else [table[image].to_pylist()]
                for values in zip(*columns, *pictures, strict=True):
                    yield dict(zip(wanted, values, strict=True))
        except (pa.ArrowException, OSError) as error:
            raise PituneError(f"{file}: cannot be read as {file.suffix[1:]} ({reason(error)})") from error

    return records


def _texts(column: pa.ChunkedArray[Any]) -> list[Any]:
    kind: Any = pa.string()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        kind = pa.list_(kind)
    return column.cast(kind).to_pylist()


def _read_csv(file: Path, columns: list[str], pictures: bool) -> Iterator[pa.Table]:
    from pyarrow import csv

    # Every column as text: a label "01" must not become 1.
    yield csv.read_csv(
        file,
        parse_options=csv.ParseOptions(delimiter="\t" if file.suffix == ".tsv" else ",", newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
    )


def _read_json(file: Path, columns: list[str], pictures: bool) -> Iterator[pa.Table]:
    from pyarrow import json as arrow_json

    yield arrow_json.read_json(file, parse_options=arrow_json.ParseOptions(newlines_in_values=False))


def _read_parquet(file: Path, columns: list[str], pictures: bool) -> Iterator[pa.Table]:
    from pyarrow import parquet

    schema = parquet.read_schema(file)
    if not set(columns) <= set(schema.names):
        yield schema.empty_table()  # for the error, which names the columns there are
    elif not pictures:
        yield parquet.read_table(file, columns=columns)
    else:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(PICTURE_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])


READERS: dict[str, Reader] = {
    ".csv": _arrow_records(_read_csv),
    ".tsv": _arrow_records(_read_csv),
    ".jsonl": _arrow_records(_read_json),
    ".parquet": _arrow_records(_read_parquet),
    ".tar": shard_records,
}
"""What reads a file, by its ending.

Each takes the file, the columns of text and that of the picture, and gives its records: text as text, a list as a
list, a picture as a path, as bytes, as Hugging Face's struct or as a :class:`Picture`.
"""
