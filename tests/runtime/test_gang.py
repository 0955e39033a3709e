"""A gang's controllers: how many follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pitune.runtime import gang
from pitune.runtime.gang import Gang


def run(monkeypatch: pytest.MonkeyPatch, further: Sequence[int]) -> tuple[Gang, list[str]]:
    """Run a gang whose controllers die after the queue has told so far; the next one ends well.

    Returns:
        The gang, and the rooms that were freed.
    """
    freed: list[str] = []
    told = iter(further)
    made: Any = None
    monkeypatch.setattr(gang, "free_rooms", freed.append)
    monkeypatch.setattr(gang.ray, "get", lambda found: found)
    thread = SimpleNamespace(start=bool, is_alive=bool)
    monkeypatch.setattr(gang, "threading", SimpleNamespace(Thread=lambda **named: thread))

    def fit() -> None:
        for number in told:
            made.heard(number)
            raise RuntimeError(f"at {number}")

    queue = SimpleNamespace(lost=SimpleNamespace(remote=bool))
    made = Gang("gang0", "run-gang0-", queue, lambda name, rooms: SimpleNamespace(fit=fit))  # type: ignore[arg-type, return-value]
    made._run()
    return made, freed


def test_one_that_gets_no_further_has_three_controllers(monkeypatch: pytest.MonkeyPatch) -> None:
    made, freed = run(monkeypatch, [0] * 9)
    assert made.error.startswith("RuntimeError: at 0")
    assert freed == ["run-gang0-"] * 3


def test_one_that_gets_further_has_as_many_as_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    made, freed = run(monkeypatch, [4, 4, 5, 0, 0, 1, 1, 1, 2])  # where it falls, the queue had started again
    assert made.error == ""
    assert freed == ["run-gang0-"] * 10
