"""Albums: pictures out of arrays of numbers, written once into the cache, in a form that any program reads.

An album is a folder with two files: ``pictures.tar``, not compressed, whose members are BMP files of 8-bit grey, and
``pictures.tsv``, with a line for each of them: key, label value, sha256 of the BMP file, where it begins in the tar and
its size. A task's :class:`Picture` reads its own bytes from there. No byte depends on a machine or a library's version:
a PNG's would, on that of zlib.
"""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pitune.assets import Asset, derived
from pitune.errors import PituneError
from pitune.tasks.pictures import Picture
from pitune.tasks.readers import Row

FORM = "album 1"
"""The form of an album; one of another form is made anew."""
PICTURES, INDEX = "pictures.tar", "pictures.tsv"
BLOCK = 512
"""A tar's unit: members begin at its multiples."""
HEADERS = struct.Struct("<2sIHHI IiiHHIIiiII")
"""A BMP's file header and its BITMAPINFOHEADER, which the palette follows."""
GREYS = b"".join(bytes((value, value, value, 0)) for value in range(256))
"""The palette that makes a byte the grey of that value."""


class Drawn(NamedTuple):
    """A picture to be put into an album: its key, its label value, and its greys as bytes, (height, width)."""

    key: str
    label: str
    greys: NDArray[np.uint8]


def album_rows(what: str, sources: list[Asset], draw: Callable[[], Iterable[Drawn]]) -> list[Row]:
    """Return the rows of an album, in the order of its pictures.

    Args:
        what: names the album.
        sources: what it is made from.
        draw: gives its pictures; called only if they are not in the cache.

    Raises:
        PituneError: the album cannot be made or read.
    """
    folder = derived(f"{what} ({FORM})", sources, lambda work: write_album(work / what, draw())).path
    file = str(folder / PICTURES)
    rows = []
    for number, line in enumerate((folder / INDEX).read_text(encoding="utf-8").splitlines(), start=1):
        key, label, digest, start, size = line.split("\t")
        picture = Picture(file, digest, int(start), int(size))
        rows.append(Row(key, None, label, f"{folder / INDEX}: line {number}", picture))
    return rows


def write_album(folder: Path, drawn: Iterable[Drawn]) -> Path:
    """Write an album into a new folder and return that."""
    folder.mkdir()
    with (folder / PICTURES).open("wb") as tar, (folder / INDEX).open("w", encoding="utf-8", newline="\n") as index:
        for key, label, greys in drawn:
            content = bmp(greys)
            info = tarfile.TarInfo(f"{key}.bmp")  # of no time and no owner
            info.size = len(content)
            tar.write(info.tobuf(tarfile.USTAR_FORMAT))
            digest = hashlib.sha256(content).hexdigest()
            index.write(f"{key}\t{label}\t{digest}\t{tar.tell()}\t{len(content)}\n")
            tar.write(content + bytes(-len(content) % BLOCK))
        tar.write(bytes(2 * BLOCK))  # the end of a tar
    return folder


def bmp(greys: NDArray[np.uint8]) -> bytes:
    """Return a BMP file of 8-bit grey: (height, width) bytes, 0 is black.

    Raises:
        PituneError: the array is of another kind, or has no pixel.
    """
    if greys.dtype != np.uint8 or greys.ndim != 2 or not greys.size:
        raise PituneError(f"an array of {greys.dtype} {greys.shape} is no picture; bytes (height, width) are")
    height, width = greys.shape
    lines = np.zeros((height, width + -width % 4), np.uint8)  # lines end at multiples of four bytes
    lines[:, :width] = greys[::-1]  # the lowest is the first
    start = HEADERS.size + len(GREYS)
    # Magic, size, two reserved, where the pixels begin; size of this header, width, height, planes, bits, compression
    # (none), size of the pixels, pixels per metre across and down (72 dpi), colours, important colours (all).
    sizes = (b"BM", start + lines.size, 0, 0, start, 40, width, height, 1, 8, 0, lines.size, 2835, 2835, 256, 0)
    return HEADERS.pack(*sizes) + GREYS + lines.tobytes()
