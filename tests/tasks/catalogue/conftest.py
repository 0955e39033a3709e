"""Packages of the catalogue that are made up here: no network, and the same bytes wherever they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pitune.assets import Asset, content_hash
from pitune.tasks.catalogue import arrays, captions, drawings, photos, questions


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[[str, Path], None]:
    """Let what begins with a URI be fetched from a folder."""
    served: dict[str, Path] = {}

    def fetched(uri: str, sha256: str | None = None) -> Asset:
        base = next(base for base in served if uri.startswith(base))
        path = served[base] / uri.removeprefix(base).lstrip("/")
        return Asset(path, content_hash(path), uri)

    for module in (arrays, captions, drawings, photos, questions):
        monkeypatch.setattr(module, "fetch", fetched)
    return served.__setitem__
