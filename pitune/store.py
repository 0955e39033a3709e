"""Artifacts: committed results, each with a manifest whose presence means *done*.

An artifact is a folder (``experts/movie@16#0``) or a single table or page (``graph.parquet``, ``report.html``). Its
files are written under temporary names and moved into place, the manifest last, so that a crash at any point leaves
either the whole artifact or none. The store lives on whatever ``pyarrow.fs`` reaches: a local folder, ``s3://``, ``gs://``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pyarrow import fs

from pitune.errors import PituneError, reason

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the layout; part of every fingerprint, so that a change of meaning makes everything anew."""
LOCK = ".lock"
TEMPORARY = ".partial"
RECORDED = ("pitune", "torch", "transformers", "peft", "deepspeed", "ray")
"""Packages whose versions every manifest names."""


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Return the sha256 of ``inputs`` written as canonical JSON; equal inputs give equal fingerprints."""
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_path(artifact: str) -> str:
    """Return where the manifest of ``artifact`` lies: inside a folder, beside a single file."""
    return f"{artifact}.{MANIFEST}" if PurePosixPath(artifact).suffix else f"{artifact}/{MANIFEST}"


def table_bytes(rows: pa.Table | list[dict[str, Any]]) -> bytes:
    """Return ``rows`` (a table, or a list of dictionaries with the same keys) as a parquet file."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


@dataclass(frozen=True)
class Job:
    """Artifacts to be made together, and everything that they are made from."""

    artifacts: tuple[str, ...]
    inputs: Mapping[str, Any]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the inputs."""
        return fingerprint_of(self.inputs)


class Store:
    """The artifacts of one study.

    Args:
        root: a folder, which the first thing written makes, or a URI that ``pyarrow.fs`` understands
            (``s3://bucket/study``).

    Raises:
        PituneError: the URI cannot be opened.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.is_local = "://" not in self.root
        try:
            if self.is_local:
                self.root = str(Path(self.root).expanduser())
                base: fs.FileSystem = fs.LocalFileSystem()
                path = str(Path(self.root).absolute())
            else:
                base, path = fs.FileSystem.from_uri(self.root)
                base.create_dir(path, recursive=True)
        except (OSError, pa.ArrowException) as error:
            raise self._unwritable(error) from error
        self._fs = fs.SubTreeFileSystem(path, base)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (str(Path(self.root).absolute()) if self.is_local else self.root,)

    # --- reading -----------------------------------------------------------------------------------------------

    def manifest(self, artifact: str) -> dict[str, Any] | None:
        """Return the manifest of ``artifact``, or None where it is not done."""
        path = manifest_path(artifact)
        if self._fs.get_file_info(path).type != fs.FileType.File:
            return None
        try:
            manifest = json.loads(self._bytes(path))
        except ValueError as error:
            raise PituneError(f"{self.root}/{path}: is not JSON ({error}); delete it and run again") from error
        except OSError as error:
            raise PituneError(f"{self.root}/{path}: cannot be read ({reason(error)})") from error
        if not isinstance(manifest, dict) or not {"fingerprint", "files"} <= manifest.keys():
            raise PituneError(f"{self.root}/{path}: is no manifest (no fingerprint and files); delete it and run again")
        return manifest

    def is_current(self, artifact: str, fingerprint: str) -> bool:
        """Say whether ``artifact`` is done, whole, and made from inputs with this fingerprint."""
        manifest = self.manifest(artifact)
        if manifest is None or manifest["fingerprint"] != fingerprint:
            return False
        paths = [f"{artifact}/{name}" if name else artifact for name in manifest["files"]]
        sizes = [info.size for info in self._fs.get_file_info(paths)]
        return sizes == [file["bytes"] for file in manifest["files"].values()]

    def read(self, artifact: str, name: str = "") -> bytes:
        """Return the bytes of one file of ``artifact`` (of the artifact itself, where it is a single file).

        Raises:
            PituneError: the artifact is not done, or the file is gone.
        """
        path = f"{artifact}/{name}" if name else artifact
        if self.manifest(artifact) is None:
            raise PituneError(f"{self.root}/{artifact}: is not there or not finished; run the study first")
        try:
            return self._bytes(path)
        except OSError as error:
            raise PituneError(f"{self.root}/{path}: cannot be read ({reason(error)})") from error

    def table(self, artifact: str, name: str = "") -> pa.Table:
        """Return one parquet file of ``artifact`` as a table.

        Raises:
            PituneError: the artifact is not done, or the file is damaged.
        """
        data = self.read(artifact, name)
        try:
            return pq.read_table(io.BytesIO(data))
        except pa.ArrowException as error:
            path = f"{artifact}/{name}" if name else artifact
            raise PituneError(
                f"{self.root}/{path}: is no parquet file ({reason(error)}); delete it and run the study again"
            ) from error

    def text(self, path: str) -> str:
        """Return a file that is no artifact (``study.yaml``) as text.

        Raises:
            PituneError: it is not there, cannot be read or is not UTF-8.
        """
        try:
            return self._bytes(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise PituneError(f"{self.root}/{path}: cannot be read ({reason(error)})") from error

    def artifacts(self) -> dict[str, dict[str, Any]]:
        """Return every finished artifact's path with its manifest, in order of path."""
        found = {}
        for info in self._fs.get_file_info(fs.FileSelector("", recursive=True, allow_not_found=True)):
            if info.type == fs.FileType.File and (
                info.base_name == MANIFEST or info.base_name.endswith(f".{MANIFEST}")
            ):
                artifact = info.path[: -len(MANIFEST) - 1]
                manifest = self.manifest(artifact)
                if manifest is not None:
                    found[artifact] = manifest
        return dict(sorted(found.items()))

    def problems(self) -> Iterator[str]:
        """Yield one line per finished artifact's file that is missing or differs from its manifest."""
        for artifact, manifest in self.artifacts().items():
            for name, expected in manifest["files"].items():
                path = f"{artifact}/{name}" if name else artifact
                if self._fs.get_file_info(path).type != fs.FileType.File:
                    yield f"{path}: missing"
                    continue
                data = self._bytes(path)
                found = hashlib.sha256(data).hexdigest()
                if found != expected["sha256"]:
                    yield (
                        f"{path}: sha256 {found[:12]}… of {len(data)} bytes, "
                        f"its manifest says {expected['sha256'][:12]}… of {expected['bytes']}"
                    )

    def _bytes(self, path: str) -> bytes:
        with self._fs.open_input_file(path) as stream:
            return bytes(stream.read())

    # --- writing -----------------------------------------------------------------------------------------------

    def commit(self, artifact: str, files: Mapping[str, bytes], fingerprint: str, **facts: Any) -> None:
        """Write an artifact; its manifest, with the fingerprint ``fingerprint`` and ``facts``, comes last.

        Args:
            artifact: its path in the study.
            files: the content of each file by name; a single-file artifact has the one name ``""``.
            fingerprint: the fingerprint of everything it was made from.
            facts: what else the manifest should say (metrics, seconds, seeds): JSON values.

        Raises:
            PituneError: the disk is full or the folder not writable. What was there before is then gone or whole.
        """
        manifest = {
            "artifact": artifact,
            "fingerprint": fingerprint,
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
            },
            "versions": _versions(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **facts,
        }
        # Written out first: a fact that is no JSON value must not cost the artifact that is there.
        last = (json.dumps(manifest, indent=1) + "\n").encode()
        self.discard(artifact)
        for name, data in files.items():
            self._write(f"{artifact}/{name}" if name else artifact, data)
        self._write(manifest_path(artifact), last)

    def discard(self, artifact: str) -> None:
        """Make ``artifact`` not done: remove its manifest, then the files that it names."""
        manifest = self.manifest(artifact)
        if manifest is None:
            return
        try:
            self._fs.delete_file(manifest_path(artifact))
            for name in manifest["files"]:
                path = f"{artifact}/{name}" if name else artifact
                if self._fs.get_file_info(path).type == fs.FileType.File:
                    self._fs.delete_file(path)
        except OSError as error:
            raise PituneError(f"{self.root}/{artifact}: cannot be replaced ({reason(error)})") from error

    def remove(self, folder: str) -> None:
        """Remove a folder of working files, if it is there."""
        with contextlib.suppress(OSError):
            self._fs.delete_dir(folder)

    def write(self, path: str, data: bytes) -> None:
        """Write a file that is no artifact (``study.yaml``), whole or not at all."""
        self._write(path, data)

    def _write(self, path: str, data: bytes) -> None:
        temporary = path + TEMPORARY
        try:
            self._fs.base_fs.create_dir(str(PurePosixPath(self._fs.base_path, path).parent), recursive=True)
            with self._fs.open_output_stream(temporary) as stream:
                stream.write(data)
            self._fs.move(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._fs.delete_file(temporary)
            raise PituneError(
                f"{self.root}/{path}: cannot be written ({reason(error)}); free or change it, then run again"
            ) from error

    def is_locked(self) -> bool:
        """Say whether some process holds the study at this moment."""
        if not self.is_local or not Path(self.root, LOCK).exists():
            return False
        lock = FileLock(Path(self.root, LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a study that only others may write
            return False
        lock.release()
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for this process; the system frees the lock however the process ends.

        Raises:
            PituneError: another process holds it, or the folder cannot be made or written. (A store that is not local
                has no lock.)
        """
        if not self.is_local:
            yield
            return
        lock = FileLock(Path(self.root, LOCK))
        try:
            _check_writable(Path(self.root).absolute())
            Path(self.root).mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise PituneError(
                f"study folder {self.root}: another pitune process is working on it; wait for it to end"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """Lend a place for Ray's own files, a path or URI; removed at the end, but kept where something went wrong.

        It is in the study, so that any machine reaches it and the next run goes on from what is there.
        """
        root = str(Path(self.root).absolute()) if self.is_local else self.root.rstrip("/")
        yield f"{root}/.ray/{name}"
        self.remove(f".ray/{name}")

    def _unwritable(self, error: Exception) -> PituneError:
        return PituneError(f"study folder {self.root}: cannot be written ({reason(error)}); name one that can")


def _check_writable(folder: Path) -> None:
    """Raise an OSError where ``folder`` could not be made, or nothing made in it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is no folder")
    if not os.access(there, os.W_OK):
        raise PermissionError("no permission to write there")


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions that a manifest names, of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in RECORDED:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
