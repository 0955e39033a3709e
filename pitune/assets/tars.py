"""Tar archives, opened so that none of them does harm by what its headers say.

Python's own reader trusts them: a header of a file of many gigabytes, of a long name as large, of holes without end, or
with a negative size, has it fill the memory or go round for ever.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO, Any

LONGEST_HEADER = 1 << 20
"""Bytes that a long name, or a list of further facts, may have."""


class Header(tarfile.TarInfo):
    """A member's header that says nothing unreasonable."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Check what was read first; tarfile calls this for each header, and leaves it to be overridden."""
        is_further = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.size < 0 or (is_further and self.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        if found.size < 0 or found.issparse():
            raise tarfile.ReadError(f"member {found.name!r:.100} has {'holes' if found.issparse() else 'no size'}")
        return found


def open_tar(name: Path | None = None, stream: IO[bytes] | None = None, mode: Any = "r:*") -> tarfile.TarFile:
    """Open a tar archive to read it.

    Raises:
        tarfile.TarError: it is none, or its first header is unreasonable, as reading on does for the others.
        OSError: it cannot be read.
    """
    return tarfile.open(name, mode, fileobj=stream, tarinfo=Header)
