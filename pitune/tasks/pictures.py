"""Pictures: where one lies, the bytes that it is, and its pixels as every backbone is given them.

A task holds no pixels: a :class:`Picture` says where they are, and decodes them when they are asked for. What comes out
is always RGB, 8 bits a channel, upright, its first frame where there are several, and on white where it is
transparent. Only png, jpeg, webp, gif, bmp and tiff are decoded: no rarer decoder of Pillow's can be reached.
"""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile, UnidentifiedImageError

from pitune.assets.tars import open_tar
from pitune.errors import PituneError, reason

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, by Pillow's names."""
MOST_PIXELS = 1024**3 // 4 // 3
"""Pillow's own limit, from which it warns: a larger picture is a mistake, or made to fill the memory."""
THUMBNAIL_QUALITY = 80
"""Of webp, 0 to 100: a picture of 96 pixels is one or two kilobytes."""
SPREADS = {"L;2": 85, "L;4": 17}
"""What takes a PNG's grey of 2 or 4 bits to 8, by Pillow's names."""
ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of each orientation upright. Pillow's own function writes the EXIF anew: odd ones break it."""


@dataclass(frozen=True)
class Picture:
    """A picture where it lies: a file, a member of a shard or zip, a cell of a table. It decodes its pixels if asked.

    Attributes:
        file: absolute path of the file, shard or table.
        digest: sha256, hex, of its encoded bytes: what it is, wherever it lies.
        start: where its bytes begin in the file; of a member of a shard or zip.
        size: how many bytes; None: the whole file.
        inflated: how many they are when they are inflated; of a zip's deflated member. None: they lie as they are.
        cell: of a parquet table: the column, of bytes or structs with a field ``bytes``, and the row, from 0.
    """

    file: str
    digest: str
    start: int = 0
    size: int | None = None
    inflated: int | None = None
    cell: tuple[str, int] | None = None

    @property
    def place(self) -> str:
        """Where it lies, in words: the file, and the member or the row."""
        if self.cell is not None:
            return f"{self.file}: row {self.cell[1] + 1}, column {self.cell[0]!r}"
        return self.file if self.size is None else f"{self.file}: {_member(self.file, self.start)}"

    def read(self) -> bytes:
        """Return its encoded bytes.

        Raises:
            PituneError: the file is gone, cannot be read or no longer holds these bytes.
        """
        try:
            content = self._content()
        except (OSError, ValueError, LookupError, zlib.error, pa.ArrowException) as error:
            raise PituneError(f"{self.place}: the picture cannot be read ({reason(error)})") from error
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise PituneError(f"{self.place}: is not the picture that it was; put that back, or start again")
        return content

    def pixels(self) -> Image.Image:
        """Return it decoded: mode RGB, upright, its first frame, on white where it is transparent.

        Raises:
            PituneError: as :meth:`read`; or it is no picture, damaged, cut off, without pixels, of more than
                :data:`MOST_PIXELS`, or of 32-bit pixels, which have no agreed black and white.
        """
        return self._decoded(self.read())

    def read_whole(self) -> bytes:
        """Return its encoded bytes, where they can be decoded.

        Raises:
            PituneError: as :meth:`pixels`.
        """
        content = self.read()
        self._decoded(content)
        return content

    def _decoded(self, content: bytes) -> Image.Image:
        try:
            return decoded(content)
        except Exception as error:  # decoders raise whatever the damage makes them stumble over
            raise PituneError(f"{self.place}: the picture cannot be decoded ({_why(error)})") from error

    def thumbnail(self, side: int) -> bytes:
        """Return it as webp with no side longer than ``side`` pixels; a smaller one keeps its size.

        Raises:
            PituneError: as :meth:`pixels`.
        """
        image, sink = self.pixels(), io.BytesIO()
        image.thumbnail((side, side))
        image.save(sink, "WEBP", quality=THUMBNAIL_QUALITY)
        return sink.getvalue()

    def _content(self) -> bytes:
        if self.cell is not None:
            return _cell(self.file, *self.cell)
        with Path(self.file).open("rb") as stream:
            stream.seek(self.start)
            content = stream.read(-1 if self.size is None else self.size)
        if self.inflated is None:
            return content
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.inflated)  # and no more, whatever it holds


# --- decoding ------------------------------------------------------------------------------------------------------


def decoded(content: bytes) -> Image.Image:
    """Decode a picture as :meth:`Picture.pixels` does.

    Raises:
        Exception: of any type; the bytes are no picture that can be shown whole.
    """
    if not content:
        raise ValueError("has no bytes")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        # Before a pixel is decoded. Pillow itself raises an error only from twice as many.
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"has {image.width} x {image.height} pixels, more than {MOST_PIXELS}")
        if not image.width * image.height:
            raise ValueError("has no pixels")
        _scale_clear_colour(image)
        image.load()
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
        plain = _rgb(image)
    plain.info.clear()  # its orientation is done with: nobody may turn it again
    return plain if turn is None else plain.transpose(turn)


def _scale_clear_colour(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's one transparent colour to 8 bits, as its pixels will be; Pillow leaves it as it is in the file."""
    clear, depth = image.info.get("transparency"), image.tile[0].args if image.format == "PNG" else None
    if isinstance(clear, int) and depth in SPREADS:
        image.info["transparency"] = clear * SPREADS[depth]
    if isinstance(clear, tuple) and depth == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode that the formats have as RGB."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, with no agreed black and white; write it with 8 or 16")
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the high bytes of 16-bit grey; where one grey is transparent, with that as alpha."""
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text is the address of a buffer
        return f"is none of {', '.join(FORMATS).lower()}, or damaged"
    return reason(error)


# --- shards and tables ---------------------------------------------------------------------------------------------


def _member(file: str, start: int) -> str:
    """Return the name of the member of a shard or zip whose bytes begin at ``start``, for errors: it is looked for."""
    try:
        if file.endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                before = [info for info in archive.infolist() if info.header_offset < start]
                return f"member {max(before, key=lambda info: info.header_offset).filename}"
        with open_tar(Path(file), mode="r:") as shard:
            return next(f"member {member.name}" for member in shard if member.offset_data == start)
    except (OSError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile, StopIteration):
        return f"byte {start}"


def _cell(file: str, column: str, row: int) -> bytes:
    """Return a cell of a parquet table that holds bytes, or a struct of Hugging Face's with a field ``bytes``."""
    stamp = Path(file).stat().st_mtime_ns
    ends = _ends_of_groups(file, stamp)
    group = bisect_right(ends, row)
    value: Any = _group(file, stamp, column, group)[row - (ends[group - 1] if group else 0)].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError("the cell has no bytes")
    return content


@functools.lru_cache(maxsize=64)
def _ends_of_groups(file: str, stamp: int) -> tuple[int, ...]:
    """Return how many rows a parquet file has up to the end of each row group; ``stamp`` tells its states apart."""
    from pyarrow import parquet

    facts = parquet.read_metadata(file)
    return tuple(accumulate(facts.row_group(group).num_rows for group in range(facts.num_row_groups)))


@functools.lru_cache(maxsize=2)  # pictures are asked for in the order of rows at least once; a group may be large
def _group(file: str, stamp: int, column: str, group: int) -> pa.ChunkedArray[Any]:
    """Return a column of a parquet file's row group, the least that can be read."""
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        return table.read_row_group(group, columns=[column]).column(column)
