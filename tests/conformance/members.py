"""Everything that is registered, in a tiny random form: what the conformance tests run over.

A registered expert kind or objective is here by itself, with its defaults. A registered family of backbones needs a
tiny model: a function in :data:`TINY`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tinybridge import open_bridge
from tinydual import open_dual, save_dual, with_pictures
from tinymodel import SHAPES, make_task, open_encoder, random_expert, save_encoder, with_several

from pitune.backbones import Backbone
from pitune.errors import PituneError
from pitune.experts import KINDS, ConditionalPrompt, Expert, ExpertKind, TextPrompt, UnifiedPrompt, VisualPrompt
from pitune.objectives import OBJECTIVES, Objective, Row, Rows
from pitune.tasks.task import Task


def _text(family: str) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        return open_encoder(save_encoder(Path(folder), family))


def _dual(family: str) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        return open_dual(save_dual(Path(folder), family))


def _bridge() -> Backbone:
    return open_bridge(Path(_FOLDER.name) / "bridge")


_FOLDER = tempfile.TemporaryDirectory()  # until the process ends
TINY: dict[str, dict[str, Callable[[], Backbone]]] = {
    "text": {family: functools.partial(_text, family) for family in SHAPES},
    "dual": {"clip": functools.partial(_dual, "clip")},
    "bridge": {"bridge": _bridge},
}
"""By the kind of a registered family of backbones: tiny random ones, by a name."""
TOWERS: dict[str, list[tuple[str, ...] | None]] = {"clip": [("image",), ("text",), ("image", "text")]}
"""In which towers experts sit, by a backbone's name; elsewhere in the one that reads examples."""
_ALL = {name: make for made in TINY.values() for name, make in made.items()}


@functools.cache
def opened(name: str) -> Backbone:
    """Open a tiny backbone, once."""
    return _ALL[name]()


@dataclass(frozen=True)
class Member:
    """A kind on a backbone, for an objective."""

    name: str
    kind: ExpertKind
    objective: Objective

    def __str__(self) -> str:
        towers = [] if self.kind.towers is None else ["+".join(self.kind.towers)]
        objective = [] if len(OBJECTIVES) == 1 else [self.objective.kind]
        return "-".join([self.kind.kind, self.name, *towers, *objective])

    @property
    def backbone(self) -> Backbone:
        """The backbone; a test is skipped where the kind finds nothing to act on there."""
        backbone = opened(self.name)
        try:
            self.kind.sites(backbone)
            self.objective.prepare(backbone, TASKS[0])
        except PituneError as error:
            pytest.skip(str(error))
        return backbone

    def experts(self, count: int) -> list[Expert]:
        """Return experts as after training."""
        return [random_expert(self.kind, self.backbone, seed) for seed in range(count)]

    def rows(self, task: Task) -> Rows:
        """Return the rows of a task's test split."""
        return Rows(self.backbone, self.objective, [(task, task.splits["test"], 1.0)])

    def groups(self) -> list[list[Row]]:
        """Return three groups of two rows, of tasks with unlike candidates."""
        return [self.rows(task).take([0, 3]) for task in TASKS]


def small(kind: type[ExpertKind], towers: tuple[str, ...] | None) -> ExpertKind:
    """Make a kind for a tiny backbone, in the last two layers; words are read by all."""
    own: dict[str, object] = {
        ConditionalPrompt: {"tokens": 3, "layers": None},
        TextPrompt: {"tokens": 3, "layers": None},
        UnifiedPrompt: {"tokens": 2, "width": 16},
        VisualPrompt: {"tokens": 3},
    }.get(kind, {})
    return kind.model_validate({"layers": 2, "towers": towers, **own})


TASKS = [
    with_pictures(task, Path(_FOLDER.name))
    for task in (make_task("one", 3, 4), make_task("two", 2, 4, longest=5), with_several(make_task("three", 4, 4)))
]
MEMBERS = [
    Member(name, small(kind, towers), objective())
    for objective in OBJECTIVES
    for kind in KINDS
    for name in _ALL
    for towers in TOWERS.get(name, [None])
]
every_member = pytest.mark.parametrize("member", MEMBERS, ids=str)
