"""What a method is: a row of the result table, and how an expert for a target comes to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from pitune.tasks.task import Family

if TYPE_CHECKING:
    from pitune.plan.builder import Builder
    from pitune.plan.node import Node
    from pitune.tasks.task import Slice

Sees = Literal["nothing", "shots", "all"]
"""What a method may see of a target's task: nothing, the target's shots, all the training data."""


class Method(ABC):
    """A way to get an expert for a target.

    A method is one file here and one line in :data:`pitune.methods.METHODS`; tables, report and documentation take
    what they say of it from its attributes.

    Attributes:
        name: what it is called in artifacts and tables, a Python name.
        title: what people read at the head of its column.
        note: what it is, in one phrase that begins small and has no full stop.
        sees: what of the target's task it may see; methods are only ranked among those that see the shots.
        similarity: what it ranks the sources by, as ``embedding.similarity`` would name it; None: by what that names.
        families: of the tasks that it has a row for; those of other tasks have a dash in the tables.
        control: it is there to be compared with, not to be used: no rival of the others.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str]
    sees: ClassVar[Sees]
    similarity: ClassVar[str | None] = None
    families: ClassVar[tuple[Family, ...]] = get_args(Family)
    control: ClassVar[bool] = False

    @abstractmethod
    def build(self, plan: Builder, target: Slice) -> Node | None:
        """Return the node that makes the expert which is scored, or None: the backbone alone is.

        Nodes that it needs are built by asking for them; what two methods ask for is built once. A method that asks for
        a target's neighbours before the graph is there is left (by an exception) and called again when it is.
        """

    def score(self, plan: Builder, target: Slice, made: Node | None) -> Node:
        """Return the node of a target's predictions on the test split: by default those of the expert that is scored.

        Args:
            plan: what nodes are made with.
            target: the target.
            made: what :meth:`build` returned.
        """
        return plan.score(self.name, target, made)
