"""The cache: content by its hash, a record per URI that leads there, locks, and hashes of what lies on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

CHUNK = 1 << 20
"""How many bytes are held in memory of a file that is written."""
SETTLED_SECONDS = 2.0
"""A file younger than this may change again without its time stamp showing it."""


@dataclass(frozen=True)
class Asset:
    """A file or folder that is there.

    Attributes:
        path: where it lies; absolute.
        sha256: of a file's bytes, or of a folder's tree (see :func:`content_hash`).
        uri: what was asked for.
    """

    path: Path
    sha256: str
    uri: str


def cache_folder() -> Path:
    """Return the folder of the cache: ``$PITUNE_CACHE``, or ``~/.cache/pitune``."""
    return Path(os.environ.get("PITUNE_CACHE") or "~/.cache/pitune").expanduser().absolute()


def cached(key: str, uri: str, make: Callable[[Path], Path]) -> Asset:
    """Return what the cache has under ``key``; else let ``make`` build it in an empty work folder, and keep that."""
    found = recorded(key, uri)
    if found is not None:
        return found
    with _lock(_name(key)):
        found = recorded(key, uri)
        if found is not None:
            return found
        work = cache_folder() / "work" / _name(key)
        shutil.rmtree(work, ignore_errors=True)  # left by a process that died: the lock is ours
        work.mkdir(parents=True)
        try:
            return _keep(make(work), key, uri)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _keep(made: Path, key: str, uri: str) -> Asset:
    """Move ``made`` to its place by content, and record it under ``key``."""
    digest = content_hash(made)
    target = cache_folder() / "content" / digest / made.name
    with _lock(digest):
        if target.exists() and content_hash(target) != digest:
            _remove(target)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            made.rename(target)
    _record(key, target, digest)
    return Asset(target, digest, uri)


def recorded(key: str, uri: str) -> Asset | None:
    """Return the asset recorded under ``key`` where it is still what it was; sizes and times stand for the content."""
    try:
        record = json.loads(record_path(key).read_bytes())
        path, digest, stamp = cache_folder() / record["path"], str(record["sha256"]), record["stamp"]
        if _stamp(path) != stamp:
            if content_hash(path) != digest:
                return None
            _record(key, path, digest)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Asset(path, digest, uri)


def _record(key: str, path: Path, digest: str) -> None:
    where = Path(os.path.relpath(path, cache_folder())) if path.is_relative_to(cache_folder()) else path
    record = {"key": key, "path": where.as_posix(), "sha256": digest, "stamp": _stamp(path)}
    target = record_path(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(target)


def record_path(key: str) -> Path:
    """Return where the record of ``key`` lies, whether there is one or not."""
    return cache_folder() / "records" / f"{_name(key)}.json"


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _lock(name: str) -> FileLock:
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def _stamp(path: Path) -> str:
    """Return a hash of the names, sizes and times of the files under ``path``, which cost no reading."""
    facts = [(name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in files_under(path)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def files_under(path: Path) -> list[tuple[str, Path]]:
    """Return the files under a folder (or the one file) with their relative POSIX paths, in order of those."""
    if not path.is_dir():
        return [(path.name, path)]
    return sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if not file.is_dir())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def content_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes; of a folder: of its sorted lines ``path NUL sha256-of-the-file``."""
    if not path.is_dir():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    lines = (f"{name}\0{content_hash(file)}\n" for name, file in files_under(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def known_hash(path: Path) -> str:
    """Return ``path``'s content hash, remembered where nothing has changed since it was computed."""
    found = recorded(str(path), str(path))
    if found is not None:
        return found.sha256
    digest = content_hash(path)
    youngest = max((file.stat().st_mtime for _, file in files_under(path)), default=0.0)
    if youngest < time.time() - SETTLED_SECONDS:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the result
            _record(str(path), path, digest)
    return digest
