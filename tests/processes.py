"""A gang of two plain processes, without Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_two(test: str, *arguments: str) -> None:
    """Call ``work(*arguments)`` of a test's file in two processes that find each other over gloo, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([str(Path(test).parent), *sys.path])
    gang = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    code = f"import sys, {Path(test).stem} as test; test.work(*sys.argv[1:])"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], env={**os.environ, **gang, "RANK": rank, "PYTHONPATH": path}
        )
        for rank in ("0", "1")
    ]
    assert [child.wait(timeout=300) for child in children] == [0, 0]
