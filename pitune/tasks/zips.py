"""Pictures in zip archives, read from where they lie: nothing is unpacked.

A member's bytes are found by its header, stored as they are or deflated, so that whoever reads a picture later needs
neither the archive's directory, which may list a quarter of a million members, nor an open file.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path
from typing import Self

from pitune.assets.archives import DAMAGED
from pitune.assets.cache import CHUNK
from pitune.errors import PituneError, reason
from pitune.tasks.pictures import Picture

PLAIN, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
LARGEST = 1 << 30
"""Bytes of an inflated picture: what claims more is a mistake, or made to fill the memory."""
LENGTHS = struct.Struct("<26xHH")
"""The part of a member's header that tells how long its name and its extra field are, which its bytes follow."""


class PictureZip:
    """An open zip archive of pictures.

    Args:
        path: of the archive.
        place: where it is named, for errors.

    Raises:
        PituneError: it cannot be read as a zip archive.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.path = path.absolute()
        try:
            self.archive = zipfile.ZipFile(self.path)
        except (OSError, *DAMAGED) as error:
            raise PituneError(f"{place}: {path} cannot be read as a zip archive ({reason(error)})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def picture(self, name: str, place: str) -> Picture:
        """Return the picture that the member ``name`` is; its bytes are read once, for their hash.

        Raises:
            PituneError: there is no such member, or it is empty, damaged, encrypted, too large or compressed in another
                way; the line begins with ``place``.
        """
        where = f"{place}: picture {name!r} of {self.path}"
        try:
            info = self.archive.getinfo(name)
        except KeyError:
            raise PituneError(f"{place}: there is no picture {name!r} in {self.path}") from None
        if not info.file_size:
            raise PituneError(f"{where}: is empty")
        if info.file_size > LARGEST:
            raise PituneError(f"{where}: says that it has {info.file_size >> 20} MiB; no picture is that large")
        if info.compress_type not in (PLAIN, DEFLATED):
            raise PituneError(f"{where}: is neither stored nor deflated; pack it anew, as any zip tool does")
        try:
            digest = self._digest(info)
            start = self._start(info)
        except (OSError, struct.error, *DAMAGED) as error:
            raise PituneError(f"{where}: cannot be read ({reason(error)})") from error
        inflated = info.file_size if info.compress_type == DEFLATED else None
        return Picture(str(self.path), digest, start, info.compress_size, inflated)

    def _digest(self, info: zipfile.ZipInfo) -> str:
        found = hashlib.sha256()
        with self.archive.open(info) as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
        return found.hexdigest()

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Return where a member's bytes begin, by its own header: the directory's extra field may be another one."""
        with self.path.open("rb") as stream:
            stream.seek(info.header_offset)
            name, extra = LENGTHS.unpack(stream.read(LENGTHS.size))
        return info.header_offset + LENGTHS.size + int(name) + int(extra)
