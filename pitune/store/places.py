"""Places: files of one folder, on a disk or by URI, read and written whole.

Everything here raises plain ``OSError``; what the user is told is said where it is known what the file is.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import fs

from pitune.errors import reason

TEMPORARY = ".partial"
"""What the names of files end in while they are written; between it and the file's own name stands the writer's."""

NOT_KEPT = ("tls_verify_certificates", "smart_defaults")
"""Options of an ``s3://`` URI that pyarrow forgets when it makes a file system like another one."""
S3_ATTEMPTS = 10
"""How often a request to S3 is made that was not answered, or by 5xx. The waits between double from 50 ms: it is given
up after half a minute, which is less than a lease lasts."""
S3_SPOILT = "AWS Error INTERNAL_FAILURE"
"""What pyarrow says, and tries no further, where S3 answers the reading of a file by an error longer than the file."""
S3_MEANS = {
    "AWS Error NO_SUCH_BUCKET": "there is no such bucket",
    "AWS Error ACCESS_DENIED": "access is denied; credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "from ~/.aws, or from the machine's role",
}
"""What S3 answers and what it means."""


class Place:
    """The files under one folder.

    Args:
        root: a folder, or a URI that ``pyarrow.fs`` understands, with its options if it has any
            (``s3://bucket/study?region=eu-west-1``). Nothing is made before the first file is written.

    Raises:
        OSError, pyarrow.ArrowException: the URI cannot be opened.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.is_local = "://" not in self.root
        if self.is_local:
            self.root = str(Path(self.root).expanduser())
            base: fs.FileSystem = fs.LocalFileSystem()
            path = str(Path(self.root).absolute())
        else:
            base, path = fs.FileSystem.from_uri(self.root)
            base = _patient(base, self.root)
        self.fs = fs.SubTreeFileSystem(path, base)

    @property
    def absolute(self) -> str:
        """The root as it is understood from any working folder."""
        return str(Path(self.root).absolute()) if self.is_local else self.root

    @property
    def name(self) -> str:
        """The folder's own name."""
        return PurePosixPath(self.fs.base_path).name

    def where(self, path: str) -> str:
        """Return ``path`` under the root, for a message or another program: a URI's options stay at its end."""
        if self.is_local:
            return f"{self.root}/{path}"
        folder, mark, options = self.root.partition("?")
        return f"{folder.rstrip('/')}/{path}{mark}{options}"

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        failed = 0
        while True:
            try:
                with self.fs.open_input_file(path) as stream:
                    return bytes(stream.read())
            except OSError as error:
                failed += 1
                if S3_SPOILT not in str(error) or failed == S3_ATTEMPTS:
                    raise
                time.sleep(0.025 * 2**failed)

    def read_if_there(self, path: str) -> bytes | None:
        """Return the bytes of a file, or None where there is none."""
        try:
            return self.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, paths: list[str]) -> list[int | None]:
        """Return the size of each file in bytes, None for one that is not there."""
        return [info.size for info in self.fs.get_file_info(paths)]

    def listing(self) -> dict[str, int]:
        """Return the size in bytes of every file under the root, by path."""
        selector = fs.FileSelector("", recursive=True, allow_not_found=True)
        try:
            infos = self.fs.get_file_info(selector)
        except FileNotFoundError:  # a folder came or went meanwhile
            infos = self.fs.get_file_info(selector)
        return {info.path: info.size for info in infos if info.type == fs.FileType.File}

    def write(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all; whoever writes the same file last wins."""
        with self.staged({path: data}) as temporaries:
            self.move(temporaries[path], path)

    def append(self, path: str, data: bytes) -> None:
        """Add to the end of a file, which is made if it is not there; an object store gets it anew as a whole."""
        if not self.is_local:
            self.write(path, (self.read_if_there(path) or b"") + data)
            return
        file = Path(self.root, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            stream.write(data)

    @contextlib.contextmanager
    def staged(self, files: Mapping[str, bytes]) -> Iterator[dict[str, str]]:
        """Write files under temporary names that no other writer has, and lend those names by path, to be moved.

        However it ends, no temporary file is left.
        """
        writer = secrets.token_hex(4)
        temporaries = {path: f"{path}.{writer}{TEMPORARY}" for path in files}
        try:
            for path, data in files.items():
                self._put(temporaries[path], data)
            yield temporaries
        except BaseException:
            for temporary in temporaries.values():
                with contextlib.suppress(OSError):
                    self.delete(temporary)
            raise

    def move(self, temporary: str, path: str) -> None:
        """Give a file its name, in the place of what has it."""
        self.fs.move(temporary, path)

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.fs.delete_file(path)

    def delete_folder(self, folder: str) -> None:
        """Delete a folder and all in it, if it is there and can be."""
        with contextlib.suppress(OSError):
            self.fs.delete_dir(folder)

    def _put(self, path: str, data: bytes) -> None:
        try:
            stream = self.fs.open_output_stream(path)
        except FileNotFoundError:  # its folder is not there; an object store needs none
            self.fs.base_fs.create_dir(str(PurePosixPath(self.fs.base_path, path).parent), recursive=True)
            stream = self.fs.open_output_stream(path)
        with stream:
            stream.write(data)


def _patient(base: fs.FileSystem, uri: str) -> fs.FileSystem:
    """Return a file system that outlives short failures of S3, where ``base`` is one that gives up after six seconds.

    It is made from ``base``: only ``from_uri`` knows what the URI says and, where that says nothing, the environment.
    """
    if not isinstance(base, fs.S3FileSystem) or any(option in uri for option in NOT_KEPT):
        return base
    state: Any = base.__reduce__()
    make, (options,) = state
    retries = fs.AwsDefaultS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    # A small file then goes in one request instead of three.
    patient: fs.FileSystem = make({**options, "retry_strategy": retries, "allow_delayed_open": True})
    return patient


def meaning(error: Exception) -> str:
    """Return what went wrong with a file, as one line."""
    text = reason(error)
    return next((meant for sign, meant in S3_MEANS.items() if sign in text), text)


def has_credentials(uri: str) -> bool:
    """Say whether a URI names who asks: ``s3://key:secret@bucket/study``."""
    return re.match(r"[\w+.-]+://[^/]*@", uri) is not None
