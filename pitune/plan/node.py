"""A node of the plan: artifacts that are made together, what they need, where and how they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pitune.store import Job

Lane = Literal["driver", "gang", "task", "search"]
"""Where a node is made: in this process, by a gang, as a Ray task, by the search."""
State = Literal["done", "new", "changed", "waits"]


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One job of the plan.

    Attributes:
        job: its artifacts and what they are made from.
        stage: under what name people see it.
        lane: where it is made.
        needs: the names of the nodes that must be there before it can be made.
        cost: rows through the backbone, forward and back.
        make: the stage, a function of the materials and the job that commits; None where the lane knows.
        together: nodes with the same word may be made in one call of ``make``, which then takes a list of jobs.
    """

    job: Job
    stage: str
    lane: Lane
    needs: tuple[str, ...] = ()
    cost: float = 0.0
    make: Callable[[Any, Any], None] | None = None
    together: str | None = None

    @property
    def name(self) -> str:
        """The node's name: that of its first artifact."""
        return self.job.artifacts[0]


class Item(NamedTuple):
    """One artifact of the plan: whether it is there, and why it is to be made if it is not."""

    stage: str
    artifact: str
    state: State
    why: str
    rows: float  # through the backbone, forward and back: the rough cost
