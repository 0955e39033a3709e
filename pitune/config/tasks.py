"""Tasks as a configuration names them: those of the catalogue, or data of one's own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from pitune.config.slices import once
from pitune.settings import OneOf, shown
from pitune.tasks.catalogue import KNOWN
from pitune.tasks.coop import CoopSource
from pitune.tasks.elevater import ElevaterSource
from pitune.tasks.sources import TaskSource
from pitune.tasks.tables import TableSource
from pitune.tasks.task import NAME

SOURCES: tuple[type[TaskSource], ...] = (TableSource, CoopSource, ElevaterSource)
"""Every kind of source; a new one is added here, and nowhere else. The first is the default."""
LONGEST_NAME = 100
"""Characters of a task's name, which becomes part of the names of files."""


def _from_names(value: Any) -> Any:
    """Let a list of names stand for tasks of the catalogue."""
    if not isinstance(value, list | tuple):
        return value
    for name in value:
        if not isinstance(name, str):
            raise ValueError(
                f"found {shown(name)} in a list; a list has names of the catalogue, tables are a mapping of names"
            )
    return dict.fromkeys(once(tuple(value), "task"))


def _can_be_had(value: dict[str, TaskSource | None]) -> dict[str, TaskSource | None]:
    for name, source in value.items():
        if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            raise ValueError(
                f"found {shown(name)!r}; a name has lower-case letters, digits, _ and - only, at most {LONGEST_NAME}"
            )
        if source is None and name not in KNOWN:
            raise ValueError(f"found {name!r}; the catalogue has {', '.join(KNOWN)}, other tasks need a table")
    return value


Tasks = Annotated[
    dict[str, Annotated[TaskSource, OneOf(SOURCES, default="table")] | None],
    Field(min_length=1, description="names from the catalogue, or data of your own"),
    BeforeValidator(_from_names),
    AfterValidator(_can_be_had),
]
