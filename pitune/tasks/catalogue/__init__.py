"""The tasks that come with pitune, read from packages at run time: nothing is fetched before a task is loaded."""

from __future__ import annotations

from collections.abc import Callable

from pitune.errors import PituneError
from pitune.tasks.catalogue import texts
from pitune.tasks.tables import TableSource, table_task
from pitune.tasks.task import Task

CATALOGUE: dict[str, Callable[[str], Task]] = {**texts.TASKS}
"""What makes each task, given its name."""
KNOWN: tuple[str, ...] = tuple(CATALOGUE)
"""The names of the catalogue."""


def load_task(name: str, source: TableSource | None = None) -> Task:
    """Return a task by its name in the catalogue, or build the one that ``source`` describes under that name.

    Raises:
        PituneError: the name is unknown, or taken by the catalogue, or the data cannot be had or are not right.
    """
    if source is None:
        if name not in CATALOGUE:
            raise PituneError(
                f"task {name!r}: is not in the catalogue ({', '.join(KNOWN)}) and has no table of its own"
            )
        return CATALOGUE[name](name)
    if name in CATALOGUE:
        raise PituneError(f"task {name!r}: the catalogue has a task of that name; give your table another")
    return table_task(name, source)
