"""Webdataset shards: how samples are written, how any shard is read, and a stream for training loops of one's own.

**What pitune writes** (:mod:`pitune.tasks.preparing` says into which files): of each example ``NAME.json`` with its
``key``, its ``label`` (the label value; of a multilabel task the list of them), its ``text`` if it has one, and
:data:`ROW`, its place in the split; and where there is a picture, that one's own bytes, ``NAME.png``. ``NAME`` is a
hash of the key, in which dots and slashes would mean something to webdataset. What tar notes beside a member (owner,
time) is fixed: equal examples give equal bytes.

**What it reads** is any uncompressed shard, and a compressed one for its texts.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pitune.assets.archives import DAMAGED, most_of
from pitune.assets.tars import open_tar
from pitune.errors import PituneError, reason
from pitune.tasks.pictures import FORMATS, Picture, decoded
from pitune.tasks.task import Example, spelled

ROW = "__row__"
"""The field of a sample's ``.json`` that says which row of its split it is, from 0: shards mix them."""
EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
"""What a picture's member ends in, by Pillow's name of its format; MPO is a JPEG with more pictures behind it."""
PICTURES = tuple(dict.fromkeys(EXTENSIONS.values()))

Numbered = tuple[int, Example]
"""An example, and which row of its split it is."""


# --- writing -------------------------------------------------------------------------------------------------------


def sample_name(key: str) -> str:
    """Return what the members of the example with this key are called: 32 hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def write_shard(path: Path, samples: Sequence[Numbered], labels: Sequence[str]) -> None:
    """Write a shard, in the order of ``samples``.

    Args:
        path: of the file, which is replaced if it is there.
        samples: the examples with their rows.
        labels: the label values, by index.

    Raises:
        PituneError: a picture cannot be read or decoded; the line says where it lies.
        OSError: the file cannot be written.
    """
    from webdataset import TarWriter  # brings torch: 1.6 s

    facts = {"mtime": 0, "user": "", "group": "", "compress": False, "encoder": False}
    with path.open("wb") as stream, TarWriter(stream, **facts) as shard:
        for row, example in samples:
            fields = {"key": example.key, "label": spelled(example.label, labels), ROW: row}
            if example.text:
                fields["text"] = example.text
            text = json.dumps(fields, ensure_ascii=False, sort_keys=True)
            members = {"json": text.encode("utf-8", "surrogatepass")}
            if example.picture is not None:
                content = example.picture.read_whole()
                members[_extension(content)] = content
            shard.write({"__key__": sample_name(example.key), **members})


def _extension(content: bytes) -> str:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return EXTENSIONS[str(image.format)]


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A shard's member: its bytes, and where they begin in the shard."""

    content: bytes
    start: int


def shard_records(file: Path, names: list[str], image: str | None) -> Iterator[dict[str, Any]]:
    """Give a webdataset shard's samples: the members' texts by extension, and the fields of a ``.json`` member.

    Only text and JSON are decoded: webdataset's own decoders, which would also read pickles, are not used.
    """
    from webdataset.tariterators import group_by_keys  # brings torch: 1.6 s

    try:
        with file.open("rb") as stream, open_tar(stream=stream) as shard:
            if image is not None and shard.fileobj is not stream:
                raise PituneError(f"{file}: is compressed; its pictures are read from where they lie, so unpack it")
            for sample in group_by_keys(_members(shard, file)):
                found = {} if image is None else {image: _shard_picture(sample, image, file)}
                yield _sample_fields(sample, names) | found
    except (OSError, *DAMAGED) as error:
        raise PituneError(f"{file}: cannot be read as a webdataset shard ({reason(error)})") from error


def _members(shard: tarfile.TarFile, file: Path) -> Iterator[dict[str, Any]]:
    """Give the members as webdataset's own iterator does, which does not tell where they begin."""
    left = most = most_of(file)
    while (member := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]  # it would keep all of a large shard's
        if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):  # those are webdataset's own
            left -= member.size
            if left < 0:  # a compressed one: what an uncompressed one claims to have beyond its end is not there
                raise PituneError(f"{file}: refused, it unpacks to more than {most >> 20} MiB")
            stream = shard.extractfile(member)
            content = stream.read() if stream else b""
            yield {"fname": member.name, "data": _Member(content, member.offset_data), "__url__": str(file)}


def _shard_picture(sample: Mapping[str, Any], extensions: str, file: Path) -> Picture | bytes | None:
    """Return the picture of a sample: its first member of the ``;``-separated extensions; ``b""`` for an empty one."""
    for extension in extensions.split(";"):
        member = sample.get(extension.strip())
        if isinstance(member, _Member):
            digest = hashlib.sha256(member.content).hexdigest()
            size = len(member.content)
            return Picture(str(file.absolute()), digest, member.start, size) if size else b""
    return None


def _sample_fields(sample: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"__key__": str(sample["__key__"])}
    if "json" in sample:
        found = json.loads(sample["json"].content)
        if not isinstance(found, dict):
            raise ValueError(f"{sample['__key__']}.json has no fields")
        row = found.pop(ROW, None)
        if not isinstance(row, int | None):
            raise ValueError(f"{sample['__key__']}.json: {ROW} is {row!r:.60}, no number")
        fields |= {name: _as_text(value) for name, value in found.items()} | ({} if row is None else {ROW: row})
    members = {name: sample.get(name) for name in names}
    fields |= {name: member.content.decode().strip() for name, member in members.items() if isinstance(member, _Member)}
    return fields


def _as_text(value: object) -> str | list[Any] | None:
    """Return a field's value as text, but for a list: it may be that of an example's labels."""
    return value if isinstance(value, str | list) or value is None else json.dumps(value)


# --- streaming -----------------------------------------------------------------------------------------------------


def stream(folder: str | Path) -> Any:
    """Return the examples of a prepared split as a ``torch.utils.data.IterableDataset``.

    Shards are shared out whole among the processes of ``torch.distributed`` (or of ``RANK`` and ``WORLD_SIZE``) and the
    workers of a ``DataLoader``: each example comes once an epoch, to one of them. Where there are fewer shards than
    workers, some get nothing. The order is that of the shards, which mix the examples.

    Args:
        folder: of the split, ``FOLDER/train``.

    Returns:
        A dataset of dictionaries: ``key``, ``label``, ``text`` (``""`` where there is none) and ``image`` (decoded as
        :meth:`pitune.tasks.pictures.Picture.pixels` does; None where there is none).

    Raises:
        PituneError: the folder has no shards.
    """
    import webdataset

    shards = sorted(map(str, Path(folder).glob("*.tar")))
    if not shards:
        raise PituneError(f"{folder}: has no shards; give the folder of a split, as pitune data prepare writes it")
    share = {"shardshuffle": False, "nodesplitter": webdataset.split_by_node, "empty_check": False}
    return webdataset.WebDataset(shards, **share).map(_streamed)


def _streamed(sample: Mapping[str, Any]) -> dict[str, Any]:
    fields = json.loads(sample["json"])
    pictures = [sample[extension] for extension in PICTURES if extension in sample]
    image = decoded(pictures[0]) if pictures else None
    return {"key": fields["key"], "label": fields["label"], "text": fields.get("text", ""), "image": image}
