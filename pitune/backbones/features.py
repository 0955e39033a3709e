"""Features of pictures, kept on the disk: what a frozen encoder makes of a picture is computed once a machine.

A file of SQLite's for each encoder, below the folder that assets are kept in, for all processes and studies, keyed by
the picture's content. Those that are many to a picture have half precision, which is what the numbers *are*, kept or
not. The oldest make room for new ones. A damaged file or row, or a file that cannot be written, costs time, not the
result: each row begins with its checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pitune.assets import cache_folder

if TYPE_CHECKING:
    from pitune.tasks.pictures import Picture

MOST_BYTES = 8 << 30
"""Of one file, about."""
WAIT_SECONDS = 60.0
"""For another process that writes."""
AT_ONCE = 500
"""Keys in one question; SQLite's own limit is higher."""
PICTURES_AT_ONCE = 32
"""Pictures that an encoder looks at together."""
CHECK_BYTES = 8
"""Of a row's checksum, before its numbers."""
Found = TypeVar("Found")


class Features:
    """Features of pictures by their content.

    Args:
        encoder: names what made them: the encoder's weights and all that is done to a picture before and after it.
        shape: of one picture's features.
        most: bytes of the file.
        whole: the numbers are float32, not of half precision.
    """

    def __init__(self, encoder: str, shape: tuple[int, ...], most: int = MOST_BYTES, whole: bool = False) -> None:
        self.file = cache_folder() / "features" / f"{encoder}.sqlite"
        self.shape, self.most = shape, most
        self._numbers = np.float32 if whole else np.float16

    def of(self, pictures: Sequence[Picture], look: Callable[[Sequence[Picture]], Tensor]) -> Tensor:
        """Return pictures' features, (pictures, ``shape``), float32; unless ``whole``, of half precision.

        Args:
            pictures: one or more.
            look: makes the features of those that are not there, (some pictures, ``shape``); they are kept.
        """
        keys = [bytes.fromhex(picture.digest) for picture in pictures]
        found = self.get(list(dict.fromkeys(keys)))
        missing = {key: one for key, one in zip(keys, pictures, strict=True) if key not in found}
        todo = list(missing.items())
        for start in range(0, len(todo), PICTURES_AT_ONCE):
            part = dict(todo[start : start + PICTURES_AT_ONCE])
            new = dict(zip(part, self._rounded(look(list(part.values())).float().cpu()), strict=True))
            self.put(new)
            found |= new
        return torch.stack([found[key] for key in keys])

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Tensor]:
        """Return those that are there, (``shape``), float32."""

        def ask(database: sqlite3.Connection) -> dict[bytes, Tensor]:
            found: dict[bytes, Tensor] = {}
            for start in range(0, len(keys), AT_ONCE):
                part = keys[start : start + AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, value FROM features WHERE key IN ({marks})", part)
                found |= {key: self._tensor(value) for key, value in rows if self._is_whole(key, value)}
            return found

        return self._do(ask) or {}

    def put(self, new: Mapping[bytes, Tensor]) -> None:
        """Keep features, (``shape``) each; where there is too little room the oldest go."""
        numbers = {key: value.numpy().astype(self._numbers).tobytes() for key, value in new.items()}
        rows = [(key, _check(key, value) + value) for key, value in numbers.items()]
        room = max(self.most // self._bytes, len(rows))

        def keep(database: sqlite3.Connection) -> None:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT OR REPLACE INTO features (key, value) VALUES (?, ?)", rows)
                (count,) = database.execute("SELECT count(*) FROM features").fetchone()
                oldest = "SELECT rowid FROM features ORDER BY rowid LIMIT ?"
                database.execute(f"DELETE FROM features WHERE rowid IN ({oldest})", (max(0, count - room),))

        self._do(keep)

    @property
    def _bytes(self) -> int:
        return CHECK_BYTES + np.dtype(self._numbers).itemsize * int(np.prod(self.shape))

    def _rounded(self, values: Tensor) -> Tensor:
        return torch.from_numpy(values.numpy().astype(self._numbers).astype(np.float32))

    def _is_whole(self, key: bytes, value: Any) -> bool:
        if not isinstance(value, bytes) or len(value) != self._bytes:
            return False
        return value[:CHECK_BYTES] == _check(key, value[CHECK_BYTES:])

    def _tensor(self, value: bytes) -> Tensor:
        return torch.from_numpy(
            np.frombuffer(value, self._numbers, offset=CHECK_BYTES).reshape(self.shape).astype(np.float32)
        )

    def _do(self, what: Callable[[sqlite3.Connection], Found]) -> Found | None:
        """Do something with the file; None where it cannot be used. A damaged one is thrown away."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.file, timeout=WAIT_SECONDS, isolation_level=None)
            with contextlib.closing(database):
                # After a power failure the file may be damaged: it is only a cache.
                database.execute("PRAGMA synchronous = OFF")
                database.text_factory = bytes  # a damaged row may say that it is text
                database.execute("CREATE TABLE IF NOT EXISTS features (key BLOB UNIQUE, value BLOB)")
                return what(database)
        except sqlite3.OperationalError:  # it cannot be opened or written, or another process has it for too long
            return None
        except sqlite3.DatabaseError:
            with contextlib.suppress(OSError):
                self.file.unlink()
        except OSError:
            pass
        return None


def _check(key: bytes, numbers: bytes) -> bytes:
    """Return a row's checksum."""
    return hashlib.blake2b(key + numbers, digest_size=CHECK_BYTES).digest()
