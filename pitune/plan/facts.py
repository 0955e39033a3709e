"""What a plan has to know of the configuration, the tasks and the backbone; each fact is found out once."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from pitune.errors import PituneError
from pitune.settings import Settings
from pitune.tasks.task import VALIDATION_SHOTS, Slice, Task, check_shots

if TYPE_CHECKING:
    from pitune.config import StudyConfig
    from pitune.materials import Materials
    from pitune.training.recipe import Recipe

EXAMPLES = 200  # of a task, to tell how long they are


class Facts:
    """Facts that many nodes share.

    Args:
        config: the study.
        materials: its tasks and its backbone's files, which are fetched when first needed.
    """

    def __init__(self, config: StudyConfig, materials: Materials) -> None:
        self.config, self.materials = config, materials
        self.sources, self.targets = config.source_slices, config.target_slices
        measured = config.transfer.target_slices if config.transfer else ()
        self.embedded = tuple(dict.fromkeys((*self.sources, *self.targets, *measured)))
        """The slices of the task graph: sources and targets, those of the transfer matrix included."""
        self._dumped: dict[int, dict[str, Any]] = {}
        self._at_rates: dict[tuple[int, float], Recipe] = {}  # by the recipe's id
        self._longer: dict[tuple[int, int], Recipe] = {}
        self._lengths: dict[str, int] = {}
        self._sources_of = Counter(source.task for source in self.sources)
        self._drawable: set[tuple[str, int | None]] = set()
        self._full: dict[str, list[Slice]] = {}
        for one in dict.fromkeys((*self.sources, *self.targets)):
            if one.shots is None:
                self._full.setdefault(one.task, []).append(one)
        self._first = {target.task: target for target in reversed(self.targets)}
        # What a URI names is told by its content, wherever that is fetched from.
        hashes = {name: asset.sha256 for name, asset in materials.backbone_assets.items()}
        backbone = {
            "sha256": hashes.pop("uri"),
            **config.backbone.model_dump(mode="json", exclude={"uri"}),
            **hashes,
            "precision": config.training.precision,
        }
        self.base = {"backbone": backbone, "objective": self.dump(config.objective), "kind": self.dump(config.expert)}
        """What every expert and every score is made from."""

    def task(self, name: str) -> Task:
        """Return a task."""
        return self.materials.task(name)

    def check(self, chosen: Slice) -> None:
        """Check that a slice can be drawn, without drawing it.

        Raises:
            PituneError: a class has too few examples.
        """
        kind = chosen.task, chosen.shots
        if kind not in self._drawable:
            check_shots(self.task(chosen.task), chosen)
            self._drawable.add(kind)

    def check_folds(self, chosen: Slice) -> None:
        """Check that a slice's shots can be dealt into ``sweep.folds``; it is drawn only where they may be too few.

        Raises:
            PituneError: there are fewer.
        """
        folds = self.config.sweep.folds
        if chosen.shots is None or chosen.shots >= folds:
            return
        has = len(self.materials.data(chosen).train)
        if has < folds:
            raise PituneError(f"sweep.folds: found {folds}, target {chosen} has {has} shots in all; use at most {has}")

    def recipe(self, chosen: Slice) -> Recipe:
        """Return how a slice is trained."""
        return self.config.training.recipe(chosen)

    def at_rate(self, recipe: Recipe, share: float) -> Recipe:
        """Return a recipe of the configuration's at a share of its learning rate; always the same object."""
        key = id(recipe), share
        if key not in self._at_rates:
            rate = min(recipe.learning_rate * share, sys.float_info.max)  # no infinity: JSON has none
            self._at_rates[key] = recipe.model_copy(update={"learning_rate": rate})
        return self._at_rates[key]

    def longer(self, recipe: Recipe, times: int) -> Recipe:
        """Return a recipe of the configuration's so many times as long, with as many validations; the same object."""
        key = id(recipe), times
        if key not in self._longer:
            every = recipe.validate_every and recipe.validate_every * times
            changes = {"steps": recipe.steps * times, "validate_every": every}
            self._longer[key] = recipe.model_copy(update=changes)
        return self._longer[key]

    def dump(self, settings: Settings) -> dict[str, Any]:
        """Return a section of the configuration as JSON values; the same section gives the same object."""
        key = id(settings)  # all of them are the configuration's, or kept here, and live as long
        if key not in self._dumped:
            self._dumped[key] = settings.model_dump(mode="json", exclude=set(settings.aside))
        return self._dumped[key]

    def others(self, task: str) -> int:
        """Return how many sources are of other tasks."""
        return len(self.sources) - self._sources_of[task]

    def size(self, chosen: Slice) -> int:
        """Return how many training examples a slice has, or where one may have several labels, at most has."""
        task = self.task(chosen.task)
        return len(task.splits["train"]) if chosen.shots is None else chosen.shots * len(task.pools)

    def validated(self, chosen: Slice) -> int:
        """Return how many examples a slice validates on."""
        task = self.task(chosen.task)
        if chosen.shots is None:
            return min(len(task.splits["validation"]), self.config.training.validation_examples)
        return len(task.pools) * min(chosen.shots, VALIDATION_SHOTS)

    def length(self, task: str) -> int:
        """Return about how many tokens a task's examples have, without opening the backbone."""
        if task not in self._lengths:
            costs = [self.config.backbone.cost(example) for example in self.task(task).splits["train"][:EXAMPLES]]
            self._lengths[task] = sum(costs) // len(costs)
        return self._lengths[task]

    def ceiling(self, target: Slice) -> Slice:
        """Return the full slice of a target's task: itself if it is one.

        Else the source or target of the same seed, else any, else seed 0.
        """
        if target.shots is None:
            return target
        full = self._full.get(target.task, ())
        same = (one for one in full if one.seed == target.seed)
        return next(same, full[0] if full else Slice(target.task, None, 0))

    def first(self, task: str) -> Slice:
        """Return a task's first target, which stands for all of them where they share something."""
        return self._first[task]
