"""The names of the catalogue: all tasks under theirs, errors in one line, nothing heavy before one is asked for."""

from __future__ import annotations

import pytest

from pitune.errors import PituneError
from pitune.tasks.catalogue import load_task
from pitune.tasks.tables import TableSource


def test_unknown_and_taken_names_are_one_line() -> None:
    with pytest.raises(PituneError, match=r"^task 'moive': is not in the catalogue \(movie, amazon, .*reuters"):
        load_task("moive")
    source = TableSource(train="a.csv", labels={"0": "bad", "1": "good"})
    with pytest.raises(PituneError, match=r"^task 'movie': the catalogue has a task of that name"):
        load_task("movie", source)
