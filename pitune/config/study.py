"""What a study is made from, section by section, and that the sections fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pitune.backbones import BACKBONES, BackboneSettings
from pitune.config.reading import to_yaml
from pitune.config.slices import Sources, Targets, TransferSettings, once
from pitune.config.tasks import Tasks
from pitune.embedding.settings import EmbeddingSettings
from pitune.experts import KINDS, ExpertKind, Lora
from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.objectives import OBJECTIVES, Match, Objective
from pitune.runtime.settings import RuntimeSettings
from pitune.settings import OneOf, Settings
from pitune.store.places import has_credentials
from pitune.tasks.task import Slice
from pitune.training.recipe import Recipe
from pitune.training.settings import JointSettings, MultitaskSettings, TrainingSettings


class StudyConfig(Settings):
    """Everything a study is made from."""

    study: str = Field(description="the folder or URI that the study's artifacts go to")
    backbone: Annotated[BackboneSettings, OneOf(BACKBONES, default="text")]
    tasks: Tasks
    objective: Annotated[Objective, OneOf(OBJECTIVES, default="match")] = Match()
    expert: Annotated[ExpertKind, OneOf(KINDS)] = Lora()
    sources: Sources = Field(description="slices whose experts may help others")
    targets: Targets = Field(description="slices to be helped, few-shot or full")
    transfer: TransferSettings | None = Field(
        None, description="the pairs to measure, by default all of the study's sources and targets; null: none"
    )
    test_examples: int | None = Field(
        None, ge=1, description="experts are scored on so many fixed test examples of a task at most; null: on all"
    )
    methods: tuple[str, ...] | None = Field(
        None, min_length=1, description="rows of the result table, by name; null: all that there are"
    )
    training: TrainingSettings = TrainingSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    interpolation: InterpolationSettings = InterpolationSettings()
    sweep: SweepSettings = SweepSettings()
    joint: JointSettings = JointSettings()
    multitask: MultitaskSettings = MultitaskSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @field_validator("study")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if has_credentials(value):
            raise ValueError("found a URI with credentials; give them in the environment, files name the study")
        if not value.strip() or not value.isprintable():
            raise ValueError(f"found {value[:60]!r}; give a folder or a URI")
        return value

    @field_validator("transfer", mode="before")
    @classmethod
    def _of_the_study(cls, value: Any, info: ValidationInfo) -> Any:
        """Let the study's sources and targets stand where the matrix names none."""
        if not isinstance(value, dict):
            return value
        known = {name: info.data[name] for name in ("sources", "targets") if name in info.data}
        return {**known, **value} if len(known) == 2 else None  # what the study lacks is told already

    @field_validator("methods")
    @classmethod
    def _are_named_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return value and once(value, "method")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._slices_have_tasks()
        self._settings_change_something()
        self._neighbours_suffice()
        self._batches_split()
        return self

    def _slices_have_tasks(self) -> None:
        pairs = self.transfer.target_slices if self.transfer else ()
        fields = {"sources": self.source_slices, "targets": self.target_slices, "transfer.targets": pairs}
        for field, slices in fields.items():
            for found in slices:
                if found.task not in self.tasks:
                    raise ValueError(f"{field}: found {found}; tasks has {', '.join(self.tasks)}")
        for task in (one for group in self.joint.groups or () for one in group):
            if task not in self.tasks:
                raise ValueError(f"joint.groups: found {task}; tasks has {', '.join(self.tasks)}")
        known = set(self.sources)
        for source in self.transfer.sources if self.transfer else ():
            if source not in known:
                raise ValueError(f"transfer.sources: found {source}; sources has {', '.join(self.sources)}")

    def _settings_change_something(self) -> None:
        if self.interpolation.max_rank and not isinstance(self.expert, Lora):
            raise ValueError("interpolation.max_rank: cuts the rank of a merged lora; leave it out for another kind")
        if self.interpolation.start == "uniform" and len(set(self.sweep.temperature)) > 1:
            raise ValueError("sweep.temperature: changes nothing where interpolation.start is uniform; give one")

    def _neighbours_suffice(self) -> None:
        most = max(self.sweep.top_k)
        sources = Counter(source.task for source in self.source_slices)
        for target in self.target_slices:
            others = len(self.sources) - sources[target.task]
            if most > others:
                said = "found" if "top_k" in self.sweep.model_fields_set else "is by default"
                raise ValueError(
                    f"sweep.top_k: {said} {most}, target {target} has {others} sources of other tasks; "
                    f"use at most {others}"
                )

    def _batches_split(self) -> None:
        workers, accumulation = self.runtime.workers, self.training.gradient_accumulation
        for name, recipe in self._recipes():
            if recipe.batch_size % (workers * accumulation):
                raise ValueError(
                    f"training.{name}.batch_size: found {recipe.batch_size}, {workers} workers with "
                    f"gradient_accumulation {accumulation} need a multiple of {workers * accumulation}"
                )

    def _recipes(self) -> Iterator[tuple[str, Recipe]]:
        yield from (("full", self.training.full), ("few", self.training.few))
        yield from ((f"shots.{shots}", recipe) for shots, recipe in self.training.shots.items())

    @property
    def source_slices(self) -> tuple[Slice, ...]:
        """The sources, parsed."""
        return tuple(map(Slice.parse, self.sources))

    @property
    def target_slices(self) -> tuple[Slice, ...]:
        """The targets, parsed."""
        return tuple(map(Slice.parse, self.targets))

    def yaml(self) -> str:
        """Return the resolved configuration, every default spelled out."""
        return to_yaml(self.model_dump(mode="json"))
