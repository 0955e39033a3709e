"""Slices as a configuration names them: sources, of which a bare task's name is one, and targets."""

from __future__ import annotations

import itertools
from collections import Counter
from math import prod
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from pitune.settings import LARGEST, Settings, shown, within
from pitune.tasks.task import NAME, Slice

MOST_SLICES = 100_000
MOST_PAIRS = 100_000


def _none_if_full(value: Any) -> Any:
    """Take ``full`` as a slice does, whose shots are then None."""
    if value == "full":
        return None
    if not isinstance(value, int):
        raise ValueError(f"found {shown(value)}; give a number of shots per class, or full")
    return value


_Shots = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_none_if_full)]


class TargetProduct(Settings):
    """Targets as a product: every task at every number of shots (or ``full``) with every seed."""

    tasks: tuple[str, ...] = Field(min_length=1)
    shots: tuple[_Shots, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_within_reason(self) -> Self:
        count = prod(map(len, (self.tasks, self.shots, self.seeds)))
        if count > MOST_SLICES:
            raise ValueError(f"found {count:,} slices; a study has at most {MOST_SLICES:,}")
        return self

    def slices(self) -> tuple[str, ...]:
        """Return the product as slices."""
        each = itertools.product(self.tasks, self.shots, self.seeds)
        return tuple(f"{task}@{shots or 'full'}#{seed}" for task, shots, seed in each)


def once(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Return the names.

    Raises:
        ValueError: one is there twice.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{shown(name)} is there twice; name each {what} once")
    return names


def _from_tasks(value: Any) -> Any:
    """Let a bare task name stand for its full slice with seed 0."""
    if isinstance(value, list | tuple):
        return [f"{name}@full#0" if isinstance(name, str) and NAME.fullmatch(name) else name for name in value]
    return value


def _from_products(value: Any) -> Any:
    """Let a product, or each of several in a list, stand for its slices."""
    if isinstance(value, dict):
        return _product(value)
    if not isinstance(value, list | tuple):
        return value
    return [one for held in value for one in (_product(held) if isinstance(held, dict) else (held,))]


def _product(value: dict[Any, Any]) -> tuple[str, ...]:
    try:
        return TargetProduct.model_validate(value).slices()
    except ValidationError as error:
        raise within(error) from error


def _are_slices(value: tuple[str, ...]) -> tuple[str, ...]:
    slices = tuple(map(Slice.parse, value))
    for found in slices:
        if max(found.shots or 0, found.seed) >= LARGEST:
            raise ValueError(f"found {shown(found)}; a whole number has at most 15 digits")
        if found.folds:
            raise ValueError(f"found {shown(found)}, a fold; a study makes those by itself, name the slice")
    return once(tuple(map(str, slices)), "slice")


_Some = Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_SLICES)]
Sources = Annotated[_Some, BeforeValidator(_from_tasks), AfterValidator(_are_slices)]
"""One or more slices, each once; a task's name stands for all of its data."""
Targets = Annotated[_Some, BeforeValidator(_from_products), AfterValidator(_are_slices)]
"""One or more slices, few-shot or full, each once; or a product of tasks, shots and seeds, or several of them."""


class TransferSettings(Settings):
    """The transfer matrix: every source with every target. What a study's section leaves out is the study's own."""

    sources: Sources = Field(description="slices whose experts the pairs start from, of the study's sources")
    targets: Targets = Field(description="slices that the pairs are tuned on")

    @model_validator(mode="after")
    def _is_within_reason(self) -> Self:
        count = len(self.sources) * len(self.targets)
        if count > MOST_PAIRS:
            raise ValueError(f"found {count:,} pairs; a transfer matrix has at most {MOST_PAIRS:,}")
        return self

    @property
    def source_slices(self) -> tuple[Slice, ...]:
        """The sources, parsed."""
        return tuple(map(Slice.parse, self.sources))

    @property
    def target_slices(self) -> tuple[Slice, ...]:
        """The targets, parsed."""
        return tuple(map(Slice.parse, self.targets))
