"""Archives: what a URI's ``#`` parts name inside them, unpacked so that no member leads outside the target folder."""

from __future__ import annotations

import contextlib
import difflib
import functools
import lzma
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from pitune.assets.cache import files_under
from pitune.assets.deb import AR, TooLargeError, copy_at_most, files_of
from pitune.assets.tars import open_tar
from pitune.errors import PituneError, reason

SMALL, MOST_GROWTH = 1 << 30, 200
"""What is unpacked may be this many bytes, or this many times the archive's own size: more is an archive bomb."""
MOST_LINKS = 40
"""Links that lead to links, as many as Linux follows."""
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)
"""What Python's readers raise of archives that are damaged, or made to harm."""


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive; ``name`` is relative, POSIX and stays below the top."""

    name: str
    is_folder: bool
    open: Callable[[], IO[bytes]]


def descend(source: Path, inner: list[str], work: Path, uri: str) -> Path:
    """Follow the ``#`` parts of a URI from ``source`` through folders and archives; unpack below ``work``."""
    for depth, wanted in enumerate(inner):
        found = inside(source, wanted, work / str(depth), uri)
        if isinstance(found, list):
            raise nothing_inside(uri, wanted, source.name, found)
        source = found
    return source if source.is_relative_to(work) else _copy(source, work)


def inside(source: Path, wanted: str, into: Path, uri: str, *, below_top: bool = False) -> Path | list[str]:
    """Return where ``wanted`` of a folder or archive lies now, or else the names that there are."""
    wanted = safe_name(wanted, uri)
    if source.is_dir():
        path = source / wanted
        return path if path.exists() else [name for name, _ in files_under(source)]
    try:
        with members_of(source, uri) as members:
            return _unpack(_without_top(members) if below_top else members, wanted, into, most_of(source))
    except TooLargeError as error:
        most = most_of(source) >> 20
        raise PituneError(f"{uri}: refused, {source.name} unpacks to more than {most} MiB") from error
    except DAMAGED as error:
        raise PituneError(f"{uri}: {source.name} is a damaged archive ({reason(error)})") from error


def most_of(archive: Path) -> int:
    """Return how many bytes may come out of an archive."""
    return max(SMALL, MOST_GROWTH * archive.stat().st_size)


def _unpack(members: list[Member], wanted: str, into: Path, most: int) -> Path | list[str]:
    """Write the members at and below ``wanted`` (``"."``: all) into the folder ``into``; ``most`` bytes in all."""
    chosen = [m for m in members if wanted in (".", m.name) or m.name.startswith(wanted + "/")]
    if not chosen:
        return [member.name for member in members]
    top = into / (PurePosixPath(wanted).name or "all")
    for member in chosen:
        path = top / PurePosixPath(member.name).relative_to(wanted)
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as stream, path.open("wb") as target:
            most -= copy_at_most(most, stream, target)
    return top


@contextlib.contextmanager
def members_of(archive: Path, uri: str) -> Iterator[list[Member]]:
    """Open a zip or tar archive or a Debian package and give its members.

    Raises:
        PituneError: it is none of these, or a member would escape the folder that it is unpacked into.
    """
    with archive.open("rb") as stream:
        start = stream.read(len(AR))
    if start == AR:
        with files_of(archive, most_of(archive)) as data, open_tar(stream=data, mode="r:") as tar:
            yield _package_members(tar, uri)
    elif start.startswith(b"PK"):
        with zipfile.ZipFile(archive) as opened:
            yield [_zip_member(opened, info, uri) for info in opened.infolist()]
    else:
        try:
            tar = open_tar(archive)
        except tarfile.ReadError as error:
            raise PituneError(
                f"{uri}: {archive.name} is no archive (zip, tar, deb), nothing can be inside it"
            ) from error
        with tar:
            yield [_tar_member(tar, info, uri) for info in tar.getmembers()]


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, uri: str) -> Member:
    name = safe_name(info.filename, uri)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise PituneError(f"{uri}: refused, its member {info.filename!r} is a link")
    return Member(name, info.is_dir(), functools.partial(archive.open, info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo, uri: str) -> Member:
    name = safe_name(info.name, uri)
    try:
        tarfile.data_filter(info, "/nowhere")
    except tarfile.FilterError as error:
        raise PituneError(f"{uri}: refused, its member {info.name!r} leads outside or is no plain file") from error
    return Member(name, info.isdir(), functools.partial(_open_tar_member, archive, info, uri))


def _package_members(archive: tarfile.TarFile, uri: str) -> list[Member]:
    """Give what a Debian package has itself: its links may lead anywhere on the system that it is made for."""
    by_name = {safe_name(info.name, uri): info for info in archive.getmembers()}
    members = []
    for name, info in by_name.items():
        if not (info.issym() or info.islnk()):
            members.append(_tar_member(archive, info, uri))
        elif (file := _linked(name, by_name)) is not None:
            members.append(Member(name, False, functools.partial(_open_tar_member, archive, file, uri)))
    return members


def _linked(name: str, by_name: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """Return the file of a package that a link leads to, or None for a folder or what another package has."""
    for _ in range(MOST_LINKS):
        info = by_name.get(name)
        if info is None or not (info.issym() or info.islnk()):
            return info if info is not None and info.isfile() else None
        folder = posixpath.dirname(name) if info.issym() else ""
        name = posixpath.normpath(posixpath.join("/", folder, info.linkname)).lstrip("/")
    return None


def _open_tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo, uri: str) -> IO[bytes]:
    # Links are followed inside the archive and written as plain files: no link ever lies on disk.
    try:
        stream = archive.extractfile(info)
    except KeyError:
        stream = None
    if stream is None:
        raise PituneError(f"{uri}: its member {info.name!r} is a link to no file of the archive")
    return stream


def safe_name(name: str, uri: str) -> str:
    """Return a member's name in plain form (``"."`` for the top).

    Raises:
        PituneError: it is absolute or has ``..`` in it, by the rules of any system.
    """
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise PituneError(f"{uri}: refused, {name!r} would escape the folder it is unpacked into")
    return PurePosixPath(name).as_posix()


def _without_top(members: list[Member]) -> list[Member]:
    """Take the single top folder of a source distribution (``NAME-VERSION/``) off its members' names."""
    tops = {member.name.split("/")[0] for member in members}
    if len(tops) != 1:
        return members
    top = tops.pop()
    below = [member for member in members if member.name != top]
    return [Member(member.name[len(top) + 1 :], member.is_folder, member.open) for member in below]


def _copy(source: Path, work: Path) -> Path:
    """Copy a file or folder below ``work``, so that it can be moved into the cache."""
    target = work / "copy" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target


def nothing_inside(uri: str, wanted: str, where: str, names: list[str]) -> PituneError:
    """Return the error for a path that is not there, with the names that come near to it."""
    by_base = {PurePosixPath(name).name: name for name in names}
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    near += [by_base[base] for base in difflib.get_close_matches(PurePosixPath(wanted).name, list(by_base), n=3)]
    near = list(dict.fromkeys(near))[:3] or sorted({name.split("/")[0] for name in names})[:5]
    return PituneError(f"{uri}: no {wanted!r} inside {where}; there are {', '.join(near) or 'no files'}")
