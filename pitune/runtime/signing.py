"""Signed checkpoints: shards are opened only where this study's own workers wrote them.

DeepSpeed's shards are pickles, and whoever opens a pickle runs what its writer put there. They lie in the study's
storage, a bucket maybe: to be allowed to write there must not mean to be allowed to run code. So each worker signs the
files that it puts into a checkpoint (HMAC-SHA256, RFC 2104), and what a pack goes on from is a private copy: of the
signed files and no others, each held against its signature once it is copied. The key never lies in the storage.

An older checkpoint of the same pack has a good signature too. To put one back costs the study some steps, no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pyarrow import fs

from pitune.assets.cache import content_hash, files_under
from pitune.errors import reason

NAME = "pitune-pack-{}.json"
"""In each checkpoint, by rank: a signature, and in the line below it what is signed, as JSON: a label, and the size and
sha256 of each of the worker's files."""
KEY_BYTES = 32
LABEL_BYTES = 1 << 20
"""More is not read of a label: it is read before anything is known of its writer."""
CHUNK = 1 << 24
"""How many bytes of a file are fetched at a time."""


class Unsigned(Exception):
    """A checkpoint is not as this study's workers wrote it; the text says which file, and why."""


@dataclass(frozen=True)
class Key:
    """What a study's workers sign with; it is not shown where the object is: Ray shows what its workers are given."""

    secret: bytes = field(repr=False)

    def sign(self, text: bytes) -> bytes:
        """Return the signature of ``text``, in hexadecimal digits."""
        return hmac.digest(self.secret, text, "sha256").hex().encode()


@dataclass(frozen=True)
class Label:
    """Which worker's part of which checkpoint it is: the pack, how many workers train it, the rank, steps done."""

    pack: str
    world_size: int
    rank: int
    step: int


def key_of(storage: str) -> Key:
    """Return the key for what lies at ``storage``: the one that this machine's user has, or a new one.

    It is kept in the user's state folder (``$XDG_STATE_HOME/pitune``, else ``~/.local/state/pitune``) and not in the
    cache, which machines may share through the very storage. One that cannot be kept lasts as long as the run.

    Args:
        storage: folder or URI of the shards.
    """
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "pitune"
    path = state / "keys" / hashlib.sha256(storage.encode()).hexdigest()
    with contextlib.suppress(OSError):
        found = path.lstat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o077 and found.st_size == KEY_BYTES:
            return Key(path.read_bytes())
    key = Key(secrets.token_bytes(KEY_BYTES))
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # for this user's eyes alone
            file.write(key.secret)
        Path(file.name).replace(path)
    return key


def sign(folder: Path, label: Label, key: Key) -> None:
    """Sign all files in ``folder``, together with ``label``, in one more file there."""
    files = {name: (path.stat().st_size, content_hash(path)) for name, path in files_under(folder)}
    text = json.dumps({"label": asdict(label), "files": files}).encode()
    (folder / NAME.format(label.rank)).write_bytes(key.sign(text) + b"\n" + text)


def copy_signed(source: fs.FileSystem, to: Path, pack: str, world_size: int, key: Key) -> int | None:
    """Copy what the workers of ``pack`` signed in a checkpoint, the files of all ranks and nothing else.

    Args:
        source: the checkpoint.
        to: an empty folder that only this user can write to.
        pack: the pack that is to go on.
        world_size: how many workers train it.
        key: the study's.

    Returns:
        The steps done; None, and nothing is copied, if the checkpoint is another pack's or of as many workers as there
        are no longer.

    Raises:
        Unsigned: a signature is missing, or another key's; a label goes not with that of rank 0; a file is missing, or
            not the one that was signed; something cannot be read.
    """
    first, files = _signed(source, 0, key)
    if (first.pack, first.world_size) != (pack, world_size):
        return None
    labels = [first]
    for rank in range(1, world_size):
        label, more = _signed(source, rank, key)
        labels.append(label)
        files |= more
    for rank, label in enumerate(labels):
        if label != replace(first, rank=rank):
            raise Unsigned(f"{NAME.format(rank)}: is signed as {label}, rank 0's as {first}")
    for name, (size, sha256) in files.items():
        _copy(source, name, size, to / name)
        if content_hash(to / name) != sha256:
            raise Unsigned(f"{name}: is not the file that was signed")
    return first.step


def _signed(source: fs.FileSystem, rank: int, key: Key) -> tuple[Label, dict[str, tuple[int, str]]]:
    """Return a rank's label, and the size and sha256 of its files by name."""
    name = NAME.format(rank)
    with _readable(name), source.open_input_stream(name, compression=None) as stream:
        signature, _, text = bytes(stream.read(LABEL_BYTES)).partition(b"\n")
    if not hmac.compare_digest(signature, key.sign(text)):
        raise Unsigned(f"{name}: is not signed with the key that this machine has for the study")
    content = json.loads(text)
    return Label(**content["label"]), content["files"]


def _copy(source: fs.FileSystem, name: str, size: int, to: Path) -> None:
    with _readable(name):
        if source.get_file_info(name).size not in (size, None):
            raise Unsigned(f"{name}: is not as large as the file that was signed")
        to.parent.mkdir(parents=True, exist_ok=True)
        with source.open_input_stream(name, compression=None) as stream, to.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unsigned(f"{name}: cannot be read ({reason(error)})") from error
