"""The names of the catalogue: every task is told of, and errors are one line."""

from __future__ import annotations

import pytest

from pitune.errors import PituneError
from pitune.tasks import catalogue
from pitune.tasks.catalogue import KNOWN, load_task
from pitune.tasks.tables import TableSource


def test_unknown_and_taken_names_are_one_line() -> None:
    with pytest.raises(PituneError, match=r"^task 'moive': is not in the catalogue \(movie, amazon, .*reuters"):
        load_task("moive")
    source = TableSource(train="a.csv", labels={"0": "bad", "1": "good"})
    with pytest.raises(PituneError, match=r"^task 'movie': the catalogue has a task of that name"):
        load_task("movie", source)


def test_every_task_is_in_the_table() -> None:
    assert [name for name in KNOWN if f"\n``{name}`` " not in str(catalogue.__doc__)] == []
