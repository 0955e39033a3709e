"""What a run says of its progress, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pitune import progress
from pitune.progress import Stage, shown


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until its only entry is changed."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_tell_of_several_stages_at_once_but_not_too_often(clock: list[float]) -> None:
    out = io.StringIO()
    with shown(Console(file=out, width=200)) as told:
        told.show([Stage("slices", 3, 3, 3), Stage("experts", 5, 1, 1)])
        clock[0] += 5
        told.show([Stage("slices", 3, 3, 3), Stage("experts", 5, 1, 2.5, ["a@2#0", "b@2#0", "c@2#0", "d@2#0"])])
        clock[0] += 15
        told.show([Stage("experts", 5, 1, 3, ["a@2#0"]), Stage("embeddings", 5, 0, 0)])
        clock[0] += 1
        told.show([Stage("experts", 5, 1, 5), Stage("embeddings", 5, 0, 0.5, ["b@2#0"])])
        told.show([Stage("experts", 5, 1, 5), Stage("embeddings", 5, 0, 0.5, ["b@2#0"])])
    assert out.getvalue().splitlines() == [
        "slices: 3 of 3 there",
        "experts: 1 of 5 there, starting",
        "experts: 3/5 after 0:20, 0:20 to go, a@2#0",
        "embeddings: 0 of 5 there, starting",
        "experts: 5/5 after 0:21",
    ]


def test_on_a_terminal_each_stage_has_a_bar(clock: list[float]) -> None:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True)
    with shown(console) as told:
        told.show([Stage("experts", 4, 0, 0), Stage("slices", 2, 0, 1, ["a@2#0"])])
        told.show([Stage("experts", 4, 0, 1.5, ["a@2#0", "b@2#0", "c@2#0", "d@2#0"]), Stage("slices", 2, 0, 2)])
    last = out.getvalue().split("experts")[-1]
    assert "1/4" in last and "a@2#0, b@2#0, c@2#0 and 1 more" in last and "2/2" in last
    assert "there, starting" not in out.getvalue()
