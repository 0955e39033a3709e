"""SIGTERM ends a process as Ctrl-C does, whatever it has inherited and whatever Ray has set."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from pitune.signals import kept, stoppable


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
