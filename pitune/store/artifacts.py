"""Artifacts: committed results, each with a manifest whose presence means *done*.

An artifact is a folder (``experts/movie@16#0``) or a single table or page (``graph.parquet``, ``report.html``). Its
files are written under temporary names that no other writer has and moved into place, the manifest last, so that a
crash at any point leaves either a whole artifact or none. What is read is held against the manifest's hashes. The store
lives on whatever ``pyarrow.fs`` reaches: a local folder, ``s3://``, ``gs://``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pitune.errors import PituneError, reason
from pitune.store.catalogue import Catalogue, Entry, entry_of
from pitune.store.lease import Lease
from pitune.store.locks import FolderLock
from pitune.store.manifest import (
    Manifest,
    artifact_of,
    difference,
    file_path,
    make_manifest,
    manifest_path,
    parse_manifest,
)
from pitune.store.places import Place, has_credentials, meaning

LOG = logging.getLogger(__name__)
READERS = 16
"""Manifests that are read at the same time: on an object store the time goes into waiting."""
TRIES = 20
"""How often a commit to a store without locks is repeated where others commit the same artifact at that moment."""


def table_bytes(rows: pa.Table | list[dict[str, Any]]) -> bytes:
    """Return ``rows`` (a table, or a list of dictionaries with the same keys) as a parquet file."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


class Store:
    """The artifacts of one study.

    Args:
        root: a folder, which the first thing written makes, or a URI that ``pyarrow.fs`` understands
            (``s3://bucket/study?region=eu-west-1``).
        owner: whose lease this store's commits are made under, where a worker opens it for the process that holds the
            study; pickling sees to it.

    Raises:
        PituneError: the URI cannot be opened, or has credentials, which would be written and said.
    """

    def __init__(self, root: str | Path, owner: str | None = None) -> None:
        if has_credentials(str(root)):
            raise PituneError("study folder: found a URI with credentials; give them in the environment")
        try:
            self._place = Place(root)
        except (OSError, pa.ArrowException) as error:
            raise _unwritable(str(root).partition("?")[0], error) from error
        self.root, self.is_local = self._place.root, self._place.is_local  # a folder, no object store
        self._guard = FolderLock(self._place) if self.is_local else Lease(self._place, owner)

    def __reduce__(self) -> tuple[type[Store], tuple[str, str | None]]:
        return Store, (self._place.absolute, self._guard.owner)

    @property
    def name(self) -> str:
        """The name of the study's own folder."""
        return self._place.name

    def where(self, path: str) -> str:
        """Return where a file or folder of the store lies, as a path or URI."""
        return self._place.where(path)

    # --- reading -----------------------------------------------------------------------------------------------

    def manifest(self, artifact: str) -> Manifest | None:
        """Return the manifest of ``artifact``, or None where it is not done: a damaged manifest says nothing."""
        found = self._manifest(artifact)
        return found and found[0]

    def is_current(self, artifact: str, fingerprint: str) -> bool:
        """Say whether ``artifact`` is done, whole, and made from inputs with this fingerprint."""
        manifest = self.manifest(artifact)
        return manifest is not None and manifest["fingerprint"] == fingerprint and self._is_whole(artifact, manifest)

    def read(self, artifact: str, name: str = "") -> bytes:
        """Return the bytes of one file of ``artifact`` (of the artifact itself, where it is a single file).

        Raises:
            PituneError: the artifact is not done, or the file is gone, or not what the manifest says it is.
        """
        try:
            return self._read(artifact, name)
        except PituneError:  # for good? or is another process replacing it?
            with self._guard.quiet():
                return self._read(artifact, name)

    def table(self, artifact: str, name: str = "", columns: Sequence[str] | None = None) -> pa.Table:
        """Return one parquet file of ``artifact`` as a table, with those of ``columns`` (None: all) that it has.

        Raises:
            PituneError: the artifact is not done, or the file is damaged.
        """
        data = self.read(artifact, name)
        try:
            return pq.ParquetFile(pa.BufferReader(data)).read(columns=None if columns is None else list(columns))
        except pa.ArrowException as error:
            raise PituneError(
                f"{self.where(file_path(artifact, name))}: is no parquet file ({reason(error)}); delete it and run the "
                "study again"
            ) from error

    def text(self, path: str) -> str:
        """Return a file that is no artifact (``study.yaml``) as text.

        Raises:
            PituneError: it is not there, cannot be read or is not UTF-8.
        """
        try:
            return self._place.read(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(path, error) from error

    def catalogue(self) -> Catalogue:
        """Return all that is finished at this moment, from one listing and one look into each manifest.

        Raises:
            PituneError: the store cannot be read.
        """
        sizes = self._listing()
        artifacts = sorted(filter(None, map(artifact_of, sizes)))
        entries: dict[str, Entry] = {}
        with ThreadPoolExecutor(READERS) as pool:
            # Some at a time: a future for each would cost more than it holds.
            for start in range(0, len(artifacts), 1000):
                some = artifacts[start : start + 1000]
                found = pool.map(lambda artifact: self._entry(artifact, sizes), some)
                entries.update((artifact, entry) for artifact, entry in zip(some, found, strict=True) if entry)
        return Catalogue(entries)

    def artifacts(self) -> dict[str, Manifest]:
        """Return every finished artifact's path with its manifest, in order of path."""
        return dict(self.catalogue())

    def problems(self) -> Iterator[str]:
        """Yield one line per damaged manifest, and per file that is missing or differs from its manifest."""
        for artifact in filter(None, map(artifact_of, sorted(self._listing()))):
            path = manifest_path(artifact)
            try:
                text = self._place.read_if_there(path)  # one that is just replaced is not there
                files = {} if text is None else parse_manifest(text, artifact)["files"]
                for name, expected in files.items():
                    path = file_path(artifact, name)
                    data = self._place.read_if_there(path)
                    wrong = "missing" if data is None else difference(data, expected)
                    if wrong:
                        yield f"{path}: {wrong}"
            except (OSError, ValueError) as error:
                yield f"{path}: {meaning(error)}"

    def _manifest(self, artifact: str) -> tuple[Manifest, bytes] | None:
        """Return the manifest of ``artifact``, and the text that says so; None where it is damaged, or not there."""
        path = manifest_path(artifact)
        try:
            text = self._place.read_if_there(path)
            return None if text is None else (parse_manifest(text, artifact), text)
        except ValueError:
            return None
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _listing(self) -> dict[str, int]:
        try:
            return self._place.listing()
        except OSError as error:
            raise self._unreadable("", error) from error

    def _read(self, artifact: str, name: str) -> bytes:
        path = file_path(artifact, name)
        manifest = self.manifest(artifact)
        if manifest is None:
            raise PituneError(f"{self.where(artifact)}: is not there or not finished; run the study first")
        if name not in manifest["files"]:
            names = ", ".join(manifest["files"])
            raise PituneError(f"{self.where(path)}: is no file of {artifact}, which has {names or 'none'}")
        try:
            data = self._place.read(path)
        except OSError as error:
            raise self._unreadable(path, error) from error
        wrong = difference(data, manifest["files"][name])
        if wrong:
            raise PituneError(f"{self.where(path)}: {wrong}; delete it and run again")
        return data

    def _entry(self, artifact: str, sizes: Mapping[str, int]) -> Entry | None:
        found = self._manifest(artifact)
        if found is None:
            return None
        manifest, text = found
        files = manifest["files"].items()
        is_listed = all(sizes.get(file_path(artifact, name)) == file["bytes"] for name, file in files)
        return entry_of(manifest, text, is_listed or self._is_whole(artifact, manifest))

    def _is_whole(self, artifact: str, manifest: Manifest) -> bool:
        sizes = self._place.sizes([file_path(artifact, name) for name in manifest["files"]])
        return sizes == [file["bytes"] for file in manifest["files"].values()]

    def _unreadable(self, path: str, error: Exception) -> PituneError:
        return PituneError(f"{self.where(path)}: cannot be read ({meaning(error)})")

    # --- writing -----------------------------------------------------------------------------------------------

    def commit(self, artifact: str, files: Mapping[str, bytes], fingerprint: str, **facts: Any) -> Manifest:
        """Write an artifact; its manifest, with the fingerprint ``fingerprint`` and ``facts``, comes last.

        Where several commit one artifact at the same time, it is in the end one of theirs as a whole.

        Args:
            artifact: its path in the study; a single file's ends in ``.parquet``, ``.json``, ``.html`` or ``.yaml``.
            files: the content of each file by name; a single-file artifact has the one name ``""``.
            fingerprint: the fingerprint of everything it was made from.
            facts: what else the manifest should say (metrics, seconds, seeds): JSON values.

        Returns:
            The manifest.

        Raises:
            PituneError: the disk is full or the folder not writable (what was there before is then gone or whole), or
                this process no longer holds the study.
            ValueError: the files' names do not go with the artifact's.
        """
        last = make_manifest(artifact, files, fingerprint, facts)
        content = {file_path(artifact, name): data for name, data in files.items()} | {manifest_path(artifact): last}
        for _ in range(TRIES):
            with self._writing(artifact):
                with self._place.staged(content) as temporaries, self._guard.turn():
                    self._delete(artifact, but=content)
                    for path, temporary in temporaries.items():
                        self._place.move(temporary, path)
                if self._place.is_local or self._is_settled(content):
                    LOG.info("committed %s", artifact, extra={"bytes": sum(map(len, content.values()))})
                    return parse_manifest(last, artifact)
            time.sleep(random.uniform(0, 0.1))
        raise PituneError(f"{self.where(artifact)}: is written by another process all the time; end that one")

    def discard(self, artifact: str) -> None:
        """Make ``artifact`` not done: remove its manifest, then the files that it names."""
        if self.manifest(artifact) is not None:
            with self._writing(artifact), self._guard.turn():
                self._delete(artifact)

    def remove(self, folder: str) -> None:
        """Remove a folder of working files, if it is there."""
        self._place.delete_folder(folder)

    def write(self, path: str, data: bytes) -> None:
        """Write a file that is no artifact (``study.yaml``), whole or not at all."""
        with self._writing(path):
            self._place.write(path, data)

    def append(self, path: str, data: bytes) -> None:
        """Add to the end of a file that is no artifact: a log."""
        with self._writing(path):
            self._place.append(path, data)

    def _delete(self, artifact: str, but: Mapping[str, bytes] | None = None) -> None:
        """Delete the manifest, then the files that it names, but for those that are about to be replaced."""
        manifest = self.manifest(artifact) or {"files": {}}
        self._place.delete(manifest_path(artifact))
        for name in manifest["files"]:
            if file_path(artifact, name) not in (but or {}):
                self._place.delete(file_path(artifact, name))

    def _is_settled(self, content: Mapping[str, bytes]) -> bool:
        """Say whether the artifact is as this process wrote it, or another will see to it.

        Without locks, two who commit one artifact may mix their files. Each deletes the manifest, writes its files,
        then its manifest, then looks here. When the manifest that stays was written, all the others had written their
        files: they wrote their own manifest before it, or gave up. So its writer sees here what is not its own, and
        commits once more.
        """
        *files, last = content
        if self._place.read_if_there(last) != content[last]:
            return True
        return all(self._place.read_if_there(path) == content[path] for path in files)

    @contextlib.contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PituneError(
                f"{self.where(path)}: cannot be written ({meaning(error)}); free or change it, then run again"
            ) from error

    # --- the study as a whole ----------------------------------------------------------------------------------

    def is_locked(self) -> bool:
        """Say whether some process holds the study at this moment."""
        try:
            return self._guard.is_held()
        except OSError as error:
            raise self._unreadable("", error) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for this process.

        In a local folder the system frees the lock however the process ends; elsewhere a lease does its work, which
        lasts a minute longer than a process that was killed. Stores that are pickled meanwhile commit under that lease.

        Raises:
            PituneError: another process holds it, or the folder cannot be made or written.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._guard.held())
            except OSError as error:
                raise _unwritable(self.root, error) from error
            yield

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[str]:
        """Lend a place for Ray's own files, a path or URI; removed at the end, but kept where something went wrong.

        It is in the study, so that any machine reaches it and the next run goes on from what is there.
        """
        yield Place(self._place.absolute).where(f".ray/{name}")
        self.remove(f".ray/{name}")


def _unwritable(root: str, error: Exception) -> PituneError:
    return PituneError(f"study folder {root}: cannot be written ({meaning(error)}); name one that can")
