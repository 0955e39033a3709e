"""SIGTERM ends a process as Ctrl-C does, whatever it has inherited and whatever Ray has set."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tinystudy import make_study

from pitune.signals import kept, stoppable
from pitune.store import Store


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("inherited", [signal.default_int_handler, signal.SIG_IGN])
def test_a_signal_is_an_interrupt_and_its_code_is_known(number: int, inherited: Any) -> None:
    before = signal.signal(number, inherited)
    try:
        with stoppable() as stopped:
            assert stopped.code is None
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(5)
            assert stopped.code == 128 + number
        assert signal.getsignal(number) is inherited
    finally:
        signal.signal(number, before)


def test_a_second_sigterm_does_not_disturb_the_tidying_up() -> None:
    with stoppable() as stopped, pytest.raises(KeyboardInterrupt):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    assert stopped.code == 143


def test_a_handler_that_ray_sets_does_not_stay() -> None:
    with stoppable() as stopped:
        with kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert stopped.code == 143


@pytest.mark.slow
@pytest.mark.kill
def test_a_run_ends_in_one_line_and_loses_nothing(tmp_path: Path) -> None:
    config = make_study(tmp_path)
    command = [sys.executable, "-m", "pitune.cli", "run", str(config)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if re.match(r"experts: \d+ of \d+ there, starting", line):
                deadline = time.monotonic() + 120
                while not list((tmp_path / "study").glob("experts/*/manifest.json")) and time.monotonic() < deadline:
                    time.sleep(0.01)
                os.kill(process.pid, signal.SIGTERM)
    assert process.returncode == 143, "".join(lines)
    assert lines[-1] == "pitune: stopped; run the same command to go on\n"
    assert not any("Traceback" in line for line in lines)
    store = Store(tmp_path / "study")
    assert store.artifacts() and not list(store.problems())
