"""Run a command and print its wall time and the peak memory of all its processes together.

    python benchmarks/memory.py pitune run configs/quickstart.yaml

Memory is the proportional set size: a page that several processes share is counted once.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil


def total(root: psutil.Process) -> int:
    """Return the memory of a process and all that it started, in bytes."""
    found = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            found += process.memory_full_info().pss
        except psutil.Error:
            continue
    return found


def main() -> int:
    """Run the command given as arguments; return its exit code."""
    began, peak = time.monotonic(), 0
    with subprocess.Popen(sys.argv[1:]) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, total(root))
            except psutil.Error:
                break
            time.sleep(1.0)
    print(f"{time.monotonic() - began:.0f} s; peak memory of all processes {peak / 2**30:.2f} GiB")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
