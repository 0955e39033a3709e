"""The same study where its storage fails amid it: an object store that is away and refuses, a disk that is full.

pytest tests/faults -m faults
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3server
from battered import Blow, Made, Nodes, make
from pyarrow import fs
from s3server import Proxy

from pitune.errors import PituneError
from pitune.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.ray]
Tell = Callable[[str, Blow, Made], None]
AWAY_SECONDS, REFUSED, DISK = 20, 20, "64m"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with s3server.moto() as port:
        made = Proxy(port)
        yield made
        made.close()


def test_an_object_store_is_away_and_refuses_now_and_then(proxy: Proxy, nodes: Nodes, config: Path, told: Tell) -> None:
    """For 20 seconds it refuses every connection; before and after every twentieth request is answered by 503."""
    where = {"endpoint_override": f"127.0.0.1:{proxy.port}", "scheme": "http", "region": "us-east-1"}
    fs.S3FileSystem(**where, allow_bucket_creation=True).create_dir("bucket")
    proxy.refused = REFUSED
    back: list[Proxy] = []

    def come_back() -> None:
        back.append(Proxy(proxy.behind, proxy.port))
        back[0].refused = REFUSED

    def strike() -> None:
        proxy.close()
        threading.Timer(AWAY_SECONDS, come_back).start()

    blow = Blow("experts", strike, made=0.1)
    options = "&".join(f"{name}={value}" for name, value in where.items())
    told("the object store", blow, make(config, f"s3://bucket/study?{options}", blow))
    assert back[0].asked > REFUSED
    back[0].close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_the_disk_is_full(disk: Path, nodes: Nodes, config: Path, told: Tell) -> None:
    """The run ends in a line; what was committed is whole, and the same command goes on where there is room again."""
    filler = disk / "filler"

    def strike() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    blow = Blow("experts", strike, made=0.1)
    with pytest.raises(PituneError) as caught:
        make(config, str(disk / "study"), blow)
    assert "No space left on device" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(Store(disk / "study").problems())
    filler.unlink()
    told("the disk is full", blow, make(config, str(disk / "study")))
