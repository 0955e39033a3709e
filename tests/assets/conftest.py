"""What the tests of all kinds of assets start from."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
