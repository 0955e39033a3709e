"""What a run writes down of how far it is, and what ``pitune status`` says to those who watch it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from pitune import watching
from pitune.errors import PituneError
from pitune.progress import Stage
from pitune.store import Store
from pitune.watching import ACCOUNT, account_of, holder, print_once, recorded, watch


class Told:
    """A progress that remembers what it was told last."""

    stages: Sequence[Stage] = ()

    def show(self, stages: Sequence[Stage]) -> None:
        self.stages = stages


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Both clocks, which stand still until their only entry is changed."""
    now = [1_000_000.0]
    monkeypatch.setattr(watching.time, "time", lambda: now[0])
    monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: None)
    return now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "study")


def told_by(look: object, *given: object) -> list[str]:
    out = io.StringIO()
    look(*given, Console(file=out, width=200))  # type: ignore[operator]
    return out.getvalue().splitlines()


def test_a_run_writes_down_how_far_it_is_every_few_seconds(store: Store, clock: list[float]) -> None:
    told = Told()
    with store.lock(), recorded(store, told) as progress:
        progress.show([Stage("experts", 4, 1, 1.5, ["a@2#0"])])
        first = account_of(store)
        clock[0] += watching.WRITE_SECONDS - 1
        progress.show([Stage("experts", 4, 1, 2.5, ["a@2#0", "b@2#0"])])
        assert account_of(store) == first and told.stages[0].done == 2.5
        clock[0] += 60
        progress.show([Stage("experts", 4, 1, 3.5, ["a@2#0", "b@2#0"]), Stage("embeddings", 4, 0, 0)])
        assert told_by(print_once, store) == [
            "experts             3 of 4   a@2#0 (1:04), b@2#0 (1:00)",
            "embeddings          0 of 4",
        ]
        account = account_of(store)
        assert account is not None and account.ended is None
        assert holder(store) == f"running now: {account.by} since 1970-01-12 13:46:40 UTC"
    assert holder(store) == "no process works on it; the last run, of 1970-01-12 13:46:40 UTC: finished"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyboardInterrupt(), "stopped"),
        (PituneError("experts: failed"), "experts: failed"),
        (ValueError("two\nlines"), "ValueError: two lines (test_watching.py:"),
    ],
)
def test_a_run_says_what_has_ended_it(store: Store, error: BaseException, says: str) -> None:
    with pytest.raises(type(error)), recorded(store, Told()):
        raise error
    account = account_of(store)
    assert account is not None and account.ended is not None and account.ended.startswith(says)


def test_a_study_that_cannot_be_written_does_not_end_for_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, data: bytes) -> None:
        raise PituneError("the disk is full")

    monkeypatch.setattr(store, "write", refuse)
    with recorded(store, Told()) as progress:
        progress.show([Stage("experts", 4, 1, 1)])


def test_watching_ends_with_the_run(store: Store, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on whenever the one who watches waits; the time to go is told from the first look on."""
    with recorded(store, Told()) as progress:
        progress.show([Stage("slices", 2, 0, 2), Stage("experts", 4, 0, 2, ["a@2#0"])])
        steps = iter([3.0, 4.0])
        held = [True, True, False]

        def go_on(seconds: float) -> None:
            clock[0] += 20
            if seconds:
                progress.show([Stage("slices", 2, 0, 2), Stage("experts", 4, 0, next(steps), ["a@2#0"])])

        monkeypatch.setattr(watching.time, "sleep", go_on)
        monkeypatch.setattr(Store, "is_locked", lambda store: held.pop(0))
        assert told_by(watch, store) == [
            "slices: 2 of 2 there",
            "experts: 2 of 4 there, starting",
            "experts: 3/4 after 0:20, 0:20 to go, a@2#0 (0:20)",
            "experts: 4/4 after 0:40, a@2#0 (0:40)",
        ]
    assert not held


def test_no_run_and_what_is_no_account_are_told_in_one_line(store: Store) -> None:
    assert holder(store) == "no process works on it"
    with pytest.raises(PituneError, match=r"study/\.progress\.json: is not there; no run has written down"):
        watch(store, Console(file=io.StringIO()))
    for text in (b"{", b'{"by": 1}', json.dumps([1]).encode()):
        store.write(ACCOUNT, text)
        with pytest.raises(PituneError, match=r"\.progress\.json: is no account of a run") as caught:
            account_of(store)
        assert "\n" not in str(caught.value)


@pytest.mark.kill
def test_a_run_that_was_killed_is_not_running(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pitune.progress import Stage
        from pitune.store import Store
        from pitune.watching import recorded
        class Told:
            def show(self, stages): pass
        store = Store(sys.argv[1])
        with store.lock(), recorded(store, Told()) as progress:
            progress.show([Stage("experts", 4, 1, 1)])
            os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=False)
    assert "gone without a word" in holder(Store(tmp_path))
    assert told_by(watch, Store(tmp_path)) == ["experts: 1 of 4 there, starting"]
