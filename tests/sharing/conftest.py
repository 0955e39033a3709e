"""What the tests of giving away start from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinymodel
from fakehub import Hub
from madestudy import make_study

from pitune.backbones.text import TextBackbone
from pitune.store import Store


@pytest.fixture
def study(tmp_path: Path, tiny: TextBackbone) -> Store:
    """A study of LoRAs on a backbone that was a local folder."""
    return make_study(tmp_path / "study", tiny, tinymodel.KINDS[0], "/home/somebody/models/tiny")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub, which huggingface_hub takes for the real one; its user has no token."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {"ENDPOINT": server.url, "HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": tmp_path / "no"}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
