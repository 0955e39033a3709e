"""The catalogue: all that is finished in a store, as it was at one moment, read with one listing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pitune.store.manifest import Manifest


class Entry(NamedTuple):
    """One finished artifact."""

    fingerprint: str
    is_whole: bool
    """Whether its files were there in the sizes that the manifest names."""
    packed: bytes
    """The manifest's JSON, compressed: unpacked, those of a large study would fill the memory."""


def entry_of(manifest: Manifest, text: bytes, is_whole: bool) -> Entry:
    """Return the entry of an artifact with this manifest, which was read from ``text``."""
    return Entry(manifest["fingerprint"], is_whole, zlib.compress(text, 1))


class Catalogue(Mapping[str, Manifest]):
    """A snapshot of a store: every finished artifact, in order of path, with its manifest.

    Looking something up needs no access to the store; each look returns a manifest of its own. What the same process
    commits or discards later is told with :meth:`note`.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, artifact: str) -> Manifest:
        manifest: Manifest = json.loads(zlib.decompress(self._entries[artifact].packed))
        return manifest

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, artifact: object) -> bool:
        return artifact in self._entries

    def fingerprint(self, artifact: str) -> str | None:
        """Return the fingerprint that ``artifact`` was made with, or None where it is not done."""
        entry = self._entries.get(artifact)
        return entry and entry.fingerprint

    def is_current(self, artifact: str, fingerprint: str) -> bool:
        """Say whether ``artifact`` is done, whole, and made from inputs with this fingerprint."""
        entry = self._entries.get(artifact)
        return entry is not None and entry.is_whole and entry.fingerprint == fingerprint

    def note(self, artifact: str, manifest: Manifest | None) -> None:
        """Take down that ``artifact`` was committed with this manifest, or (None) is no longer done."""
        if manifest is None:
            self._entries.pop(artifact, None)
        else:
            self._entries[artifact] = entry_of(manifest, json.dumps(manifest).encode(), is_whole=True)
