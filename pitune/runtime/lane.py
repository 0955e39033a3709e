"""A lane: one way of making nodes of the plan, alive for a whole run.

A study puts what is ready into its lanes and asks them what has come of it: the gangs make what is trained, the tasks
what is computed, the search what is searched. None of them blocks, so that all of them work at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeVar

from pitune.errors import one_line
from pitune.store import Job


class Node(Protocol):
    """What a lane sees of a node of the plan."""

    @property
    def job(self) -> Job:
        """What is to be made; the name of its first artifact is the node's name."""
        ...

    @property
    def cost(self) -> float:
        """How much work it is: the long ones go first."""
        ...

    @property
    def make(self) -> Callable[[Any, Any], None] | None:
        """A stage: makes and commits ``job`` with the materials; takes a list of jobs where ``together`` is set."""
        ...

    @property
    def together(self) -> str | None:
        """Nodes with the same ``together`` may be made in one call of ``make(materials, [job, …])``."""
        ...


N = TypeVar("N", bound=Node)


class Lane(Protocol[N]):
    """Makes nodes; a context manager that is entered once, before the first node is added."""

    def add(self, nodes: Sequence[N]) -> None:
        """Take nodes whose needs are all there. Never blocks."""

    def finished(self) -> list[tuple[N, str | None]]:
        """Return the nodes that have ended since the last call, each with its error in one line, or None."""

    def running(self) -> dict[str, float]:
        """Return what is being made: the name of each node's first artifact, and the share of it that is done."""

    def unfinished(self) -> int:
        """Return how many nodes were added and have not been returned by :meth:`finished`."""

    def __enter__(self) -> Self:
        """Start what can be started before the first node is known; returns at once."""

    def __exit__(self, *error: object) -> None:
        """End it: what runs is stopped, and nothing of the lane outlives this call."""


def error_of(make: Callable[..., object], *given: object) -> str | None:
    """Call ``make`` and return what it raised, in one line, or None: one node's error ends no other."""
    try:
        make(*given)
    except Exception as error:
        return one_line(error)
    return None


def name_of(node: Node) -> str:
    """Return a node's name: that of its first artifact."""
    return node.job.artifacts[0]
