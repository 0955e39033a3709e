"""The queue of packs at one moment: what the driver sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Running:
    """A pack that a gang works on."""

    pack: str
    gang: str
    step: int
    steps: int


@dataclass(frozen=True)
class Snapshot:
    """The queue at one moment.

    Attributes:
        life: tells one life of the actor from the next, which has forgotten everything.
        total: packs in all.
        waiting: packs that nobody has begun, or whose gang died.
        done: the errors of the members of each pack that is finished, by their names.
        failed: each failed pack's error, in one line.
        running: what the gangs work on.
        errors: each gang's error that came from no pack (the backbone does not load).
        controllers: the handle of the actor that runs each gang.
        further: how often each gang has got any further: one that works, not one that only dies.
        split: by the name of each pack that did not fit into memory, those that have taken its place.
    """

    life: str
    total: int
    waiting: int
    done: dict[str, dict[str, str]]
    failed: dict[str, str]
    running: tuple[Running, ...]
    errors: dict[str, str]
    controllers: dict[str, Any]
    further: dict[str, int]
    split: dict[str, Sequence[Any]]
