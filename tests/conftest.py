"""What several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pitune.runtime.cluster import Cluster


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers."""
    config.addinivalue_line("markers", "slow: takes more than ten seconds")
    config.addinivalue_line("markers", "kill: kills a worker or a whole process")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Cluster]:
    """A local Ray with two CPUs, shared by all tests that need one."""
    from pitune.runtime.cluster import connect

    with connect(cpus=2) as cluster:
        yield cluster
