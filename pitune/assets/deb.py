"""The format of Debian packages: an ``ar`` archive, and in it a compressed tar of the files. Nothing else is read.

What a package would run when it is installed lies in another part of it, which is never opened.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pitune.assets.cache import CHUNK, cache_folder

AR = b"!<arch>\n"
"""What an ``ar`` archive begins with."""
HEADER = 60
"""The bytes before each part: its name in the first 16, its size as text in the ten from 48 on."""


class TooLargeError(Exception):
    """More comes out of an archive than may."""


def copy_at_most(most: int, stream: IO[bytes], target: IO[bytes]) -> int:
    """Copy a stream and return how many bytes it had.

    Raises:
        TooLargeError: they are more than ``most``.
    """
    count = 0
    while chunk := stream.read(min(CHUNK, most + 1)):
        count += len(chunk)
        if count > most:
            raise TooLargeError
        target.write(chunk)
    return count


@contextlib.contextmanager
def files_of(package: Path, most: int) -> Iterator[IO[bytes]]:
    """Open the tar with the files of a Debian package; while it is open it lies uncompressed on the disk, unnamed.

    Raises:
        TooLargeError: it has more than ``most`` bytes.
        tarfile.ReadError: the package is damaged, or compressed in a way that is not known.
    """
    # Uncompressed, since each step back in a compressed tar begins it anew, and links lead back and forth.
    folder = cache_folder() / "work"
    folder.mkdir(parents=True, exist_ok=True)
    with package.open("rb") as stream, tempfile.TemporaryFile(dir=folder) as plain:
        name, size = _find_files(stream)
        try:
            with _opened(name, io.BufferedReader(_Part(stream, size))) as unpacked:
                copy_at_most(most, unpacked, plain)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None):  # the disk's own, not the codec's
                raise
            raise tarfile.ReadError(f"its {name}: {error}") from error
        plain.seek(0)
        yield plain


def _find_files(stream: IO[bytes]) -> tuple[str, int]:
    """Go to the part of an ``ar`` archive that has a package's files; return its name and size."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(len(AR))
    while len(header := stream.read(HEADER)) == HEADER:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
        if not size.isdigit():
            break
        if stream.tell() + int(size) > end:
            raise tarfile.ReadError("it ends too early")
        if name.startswith("data.tar"):
            return name, int(size)
        stream.seek(int(size) + int(size) % 2, os.SEEK_CUR)
    raise tarfile.ReadError("it has no data.tar")


def _opened(name: str, part: IO[bytes]) -> IO[bytes]:
    openers: dict[str, Callable[[IO[bytes]], Any]] = {
        ".tar": contextlib.nullcontext,
        ".gz": gzip.open,
        ".xz": lzma.open,
        ".lzma": lzma.open,
        ".bz2": bz2.open,
        ".zst": _zstandard,
    }
    suffix = PurePosixPath(name).suffix
    if suffix not in openers:
        raise tarfile.ReadError(f"its {name} is compressed in a way that is not known")
    opened: IO[bytes] = openers[suffix](part)
    return opened


def _zstandard(part: Any) -> Any:
    import pyarrow  # Python's own zstd begins with 3.14

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(part, mode="r"), "zstd")


class _Part(io.RawIOBase):
    """The next ``left`` bytes of a stream, as a stream."""

    def __init__(self, stream: IO[bytes], left: int) -> None:
        self.stream, self.left = stream, left

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as there is something left."""
        data = self.stream.read(min(len(buffer), self.left))
        self.left -= len(data)
        buffer[: len(data)] = data
        return len(data)
