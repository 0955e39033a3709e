"""What a task is: examples per split, candidate labels with their texts, a metric; and its slices.

**A family** says what the labels are. In *classification* they are classes with many examples each: every split has
all of them, and a shot is one example of each. A *multilabel* task has such classes, too, but an example may be of
several of them at once, or of none. In *retrieval* they are captions, and nearly every example has one of its own,
which is to be found among those of all splits; accuracy is then recall at 1. A shot is one example of each of
:data:`WAYS` groups, so that it means about as many examples as one of a task with a few classes.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import Literal, Self

import numpy as np

from pitune.errors import PituneError
from pitune.tasks.pictures import Picture

SPLITS = ("train", "validation", "test")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
VALIDATION_SHOTS = 4
"""A few-shot slice validates on min(shots, 4) further examples per class, as in CoOp (arXiv 2109.01134)."""
WAYS = 5
"""How many examples a shot of a retrieval task has: 16 shots and 4 to validate on fit into 100 training examples."""

Family = Literal["classification", "multilabel", "retrieval"]
Label = int | tuple[int, ...]
"""The index of an example's label; of a multilabel task those of all its labels, in order, which may be none."""
PLAIN = ("{}",)
"""The templates of a task whose candidates' texts are read as they are."""


def has_a_place(template: str) -> str:
    """Return a template.

    Raises:
        ValueError: it has not one ``{}``.
    """
    if template.count("{}") != 1:
        raise ValueError(f"{template!r} has no {{}}, or several; write one, where the candidate's text goes")
    return template


@dataclass(frozen=True)
class Example:
    """One labelled text, picture, or both.

    Attributes:
        key: names it within its task for good.
        text: ``""`` where there is none.
        label: indexes the task's labels; see :data:`Label`.
        picture: None where there is none.
    """

    key: str
    text: str
    label: Label
    picture: Picture | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """The indices of all its labels, of which most tasks' examples have one."""
        return (self.label,) if isinstance(self.label, int) else self.label


def spelled(label: Label, values: Sequence[str]) -> str | list[str]:
    """Return the value, among those of a task's labels, of a label; of a multilabel task's, the list of its values."""
    return values[label] if isinstance(label, int) else [values[one] for one in label]


@dataclass(frozen=True)
class Task:
    """Data, how an example becomes model input, and how it is scored.

    Attributes:
        name: lower-case letters, digits, ``_`` and ``-``.
        modality: what each of its examples has, and goes into the backbone: ``text``, ``image`` or ``image+text``.
        metric: the name of a function in :mod:`pitune.tasks.metrics`.
        labels: the candidate labels, in the order of their indices; of a retrieval task its captions.
        label_texts: the text of each candidate, which the frozen backbone embeds.
        splits: ``train``, ``validation`` and ``test`` examples; fixed, the same for every seed.
        fingerprint: the hash of everything else here.
        family: what the labels are.
        templates: sentences with one ``{}`` for a candidate's text. What the backbone alone makes of a candidate is the
            mean over all of them, as with CLIP (arXiv 2103.00020, section 3.1.4).
    """

    name: str
    modality: str
    metric: str
    labels: tuple[str, ...]
    label_texts: tuple[str, ...]
    splits: Mapping[str, tuple[Example, ...]]
    fingerprint: str
    family: Family = "classification"
    templates: tuple[str, ...] = PLAIN

    @functools.cached_property
    def pools(self) -> tuple[tuple[Example, ...], ...]:
        """The groups of training examples of which a shot takes one each.

        The examples of each label, of which one with several is in several; of a retrieval task :data:`WAYS` groups, to
        which the examples are dealt in the order of a hash of their keys, so that their sizes differ by 1 at most.
        """
        if self.family == "retrieval":
            dealt = sorted(self.splits["train"], key=lambda one: hashlib.sha256(f"pool {one.key}".encode()).digest())
            return tuple(tuple(dealt[group::WAYS]) for group in range(WAYS))
        pools: list[list[Example]] = [[] for _ in self.labels]
        for example in self.splits["train"]:
            for label in example.labels:
                pools[label].append(example)
        return tuple(map(tuple, pools))

    def pool_name(self, index: int) -> str:
        """Return what one of the ``pools`` is, for errors."""
        if self.family == "retrieval":
            return f"group {index + 1} of the {WAYS} that retrieval task {self.name}'s examples are dealt to"
        return f"class {self.labels[index]!r} of task {self.name}"


@total_ordering
@dataclass(frozen=True)
class Slice:
    """A task at a shot count (``None``: all training examples) and a seed; written ``movie@16#0``, ``movie@full#0``.

    A fold of it, ``movie@16#0~1of4``, has the same examples otherwise dealt: it validates on a part of the shots, and
    trains on all else. Slices are ordered by task, shots (full comes last) and seed, their folds after them.

    Attributes:
        task: its name.
        shots: examples of each of the task's pools.
        seed: of the draw.
        fold: which of the ``folds``, from 1; 0 of 0 is the slice itself.
        folds: into how many parts the shots are dealt.
    """

    task: str
    shots: int | None
    seed: int
    fold: int = 0
    folds: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a slice from its written form.

        Raises:
            ValueError: the text is not of the form ``task@shots#seed``, or ``task@shots#seed~1of2``.
        """
        match = re.fullmatch(rf"({NAME.pattern})@(full|[1-9]\d*)#(\d+)(?:~([1-9]\d*)of([1-9]\d*))?", text)
        if match is None or int(match[4] or 0) > int(match[5] or 0) or (match[4] and match[2] == "full"):
            raise ValueError(f"{text!r} is not a slice; write task@shots#seed, as in movie@16#0 or movie@full#0")
        task, shots, *numbers = match.groups()
        return cls(task, None if shots == "full" else int(shots), *(int(number or 0) for number in numbers))

    def __lt__(self, other: object) -> bool:
        return self._order() < other._order() if isinstance(other, Slice) else NotImplemented

    def _order(self) -> tuple[str, bool, int, int, int, int]:
        return self.task, self.shots is None, self.shots or 0, self.seed, self.folds, self.fold

    def __str__(self) -> str:
        return f"{self.task}@{self.shots_text}#{self.seed}" + (f"~{self.fold}of{self.folds}" if self.folds else "")

    def dealt(self, folds: int) -> tuple[Self, ...]:
        """Return the folds of a few-shot slice whose shots are dealt into so many parts."""
        return tuple(replace(self, fold=fold, folds=folds) for fold in range(1, folds + 1))

    @property
    def shots_text(self) -> str:
        """The shot count as text: ``16``, or ``full``."""
        return str(self.shots or "full")


@dataclass(frozen=True)
class SliceData:
    """The examples of a slice: what it trains on and what it validates on."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]


def draw(task: Task, chosen: Slice) -> SliceData:
    """Draw a slice's examples.

    A full slice has the task's train and validation splits. A few-shot slice draws ``shots`` training examples of each
    of its ``pools`` (per class), and ``min(shots, 4)`` further ones of each to validate on, both from the train split.
    The draw depends on the seed alone: the same seed's 4 shots are among its 16.

    An example of several pools counts for each of them, and is drawn once: every label of a multilabel task has
    ``shots`` training examples or more, and as many to validate on where those of other labels leave them. An example
    without labels is in no pool, and so in full slices only.

    A fold deals its slice's shots like cards, pool after pool, into parts of like size and mixture. It validates on the
    part that is its own, and trains on the others and on the slice's validation examples. So each example of a slice is
    validated on by the slice or by just one of its folds.

    Raises:
        PituneError: a pool has too few examples, or there are more folds than shots.
    """
    if chosen.shots is None:
        return SliceData(task.splits["train"], task.splits["validation"])
    if chosen.folds:
        return _fold(draw(task, replace(chosen, fold=0, folds=0)), chosen)
    check_shots(task, chosen)
    orders = [
        [pool[place] for place in np.random.default_rng([chosen.seed, index]).permutation(len(pool))]
        for index, pool in enumerate(task.pools)
    ]
    train = _taken(orders, chosen.shots, frozenset())
    # The validation examples come from the far end, so that growing the shots keeps them as long as it can.
    validation = _taken([order[::-1] for order in orders], min(chosen.shots, VALIDATION_SHOTS), train)
    wanted = train | validation
    drawn = {example.key: example for order in orders for example in order if example.key in wanted}
    parts = [tuple(example for key, example in drawn.items() if key in part) for part in (train, validation)]
    return SliceData(*parts)


def _fold(data: SliceData, chosen: Slice) -> SliceData:
    """Deal a slice's examples as one of its folds has them."""
    if len(data.train) < chosen.folds:
        has, need = len(data.train), chosen.folds
        raise PituneError(f"slice {chosen}: has {has} shots in all, {need} folds need {need} or more")
    held = data.train[chosen.fold - 1 :: chosen.folds]
    keys = {example.key for example in held}
    return SliceData(tuple(one for one in (*data.train, *data.validation) if one.key not in keys), held)


def _taken(orders: Sequence[Sequence[Example]], each: int, others: Set[str]) -> set[str]:
    """Return the keys of the first examples of several orders, so many of each, without those of ``others``.

    They are taken in rounds, so that fewer are among more; within a round the shortest order comes first, for it has
    the least to choose from. An order that has enough by then, as examples may be in several, takes none.
    """
    of: dict[str, list[int]] = defaultdict(list)
    for index, order in enumerate(orders):
        for example in order:
            of[example.key].append(index)
    left = [iter(order) for order in orders]
    by_size = sorted(range(len(orders)), key=lambda index: len(orders[index]))
    taken: set[str] = set()
    counts: Counter[int] = Counter()
    for shot in range(each):
        for index in by_size:
            free = (one.key for one in left[index] if one.key not in taken and one.key not in others)
            if counts[index] <= shot and (key := next(free, None)) is not None:
                taken.add(key)
                counts.update(of[key])
    return taken


def check_shots(task: Task, chosen: Slice) -> None:
    """Check that a slice can be drawn.

    Raises:
        PituneError: a pool has too few examples.
    """
    if chosen.shots is None:
        return
    further = min(chosen.shots, VALIDATION_SHOTS)
    for index, pool in enumerate(task.pools):
        if len(pool) < chosen.shots + further:
            raise PituneError(
                f"slice {chosen}: {task.pool_name(index)} has {len(pool)} training examples, "
                f"{chosen.shots} shots and {further} to validate on need {chosen.shots + further}"
            )
