"""The study's configuration: YAML in, a typed object out, and one clear line for anything wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pitune.backbones import TextSettings
from pitune.embedding.settings import EmbeddingSettings
from pitune.errors import PituneError, reason
from pitune.experts import AnyKind, Lora
from pitune.interpolation.settings import InterpolationSettings, SweepSettings
from pitune.objectives import Match
from pitune.runtime.settings import RuntimeSettings
from pitune.settings import Settings
from pitune.tasks.catalogue import KNOWN
from pitune.tasks.tables import TableSource
from pitune.tasks.task import NAME, Slice
from pitune.training.settings import TrainingSettings


class FewShotTargets(Settings):
    """Targets as a product: every task at every number of shots with every seed."""

    tasks: tuple[str, ...] = Field(min_length=1)
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)

    def slices(self) -> tuple[str, ...]:
        """Return the product as slices."""
        return tuple(f"{task}@{shots}#{seed}" for task in self.tasks for shots in self.shots for seed in self.seeds)


class StudyConfig(Settings):
    """Everything a study is made from."""

    study: str = Field(description="the folder or URI that the study's artifacts go to")
    backbone: TextSettings
    tasks: dict[str, TableSource | None] = Field(
        min_length=1, description="names from the catalogue, or tables of your own"
    )
    objective: Match = Match()
    expert: Annotated[AnyKind, Field(discriminator="kind")] = Lora()
    sources: tuple[str, ...] = Field(min_length=1, description="slices whose experts may help others")
    targets: tuple[str, ...] = Field(min_length=1, description="few-shot slices to be helped")
    training: TrainingSettings = TrainingSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    interpolation: InterpolationSettings = InterpolationSettings()
    sweep: SweepSettings = SweepSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            twice = [name for name, count in Counter(map(str, value)).items() if count > 1]
            if twice:
                raise ValueError(f"{twice[0]} is there twice; name each task once")
            return dict.fromkeys(value)
        return value

    @field_validator("sources", mode="before")
    @classmethod
    def _whole_tasks(cls, value: Any) -> Any:
        """Let a bare task name stand for its full slice with seed 0."""
        if isinstance(value, list | tuple):
            return [f"{name}@full#0" if isinstance(name, str) and NAME.fullmatch(name) else name for name in value]
        return value

    @field_validator("targets", mode="before")
    @classmethod
    def _product(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        try:
            return FewShotTargets.model_validate(value).slices()
        except ValidationError as error:
            raise PydanticCustomError("within", "{text}", {"text": _first(error, FewShotTargets)}) from error

    @field_validator("sources", "targets")
    @classmethod
    def _slices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple(str(Slice.parse(text)) for text in value)
        twice = [text for text, count in Counter(value).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} is there twice; name each slice once")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_tasks()
        if re.search("//[^/]*@", self.study):
            raise ValueError("study: found a URI with credentials; give them in the environment, files name the study")
        if self.interpolation.max_rank and not isinstance(self.expert, Lora):
            raise ValueError("interpolation.max_rank: cuts the rank of a merged lora; leave it out for another kind")
        if self.interpolation.start == "uniform" and len(set(self.sweep.temperature)) > 1:
            raise ValueError("sweep.temperature: changes nothing where interpolation.start is uniform; give one")
        for text in self.targets:
            if Slice.parse(text).shots is None:
                raise ValueError(
                    f"targets: {text} is a full slice; a target has shots, as in {Slice.parse(text).task}@16#0"
                )
        said = "found" if "top_k" in self.sweep.model_fields_set else "is by default"
        for target in self.target_slices:
            others = sum(Slice.parse(source).task != target.task for source in self.sources)
            if max(self.sweep.top_k) > others:
                raise ValueError(
                    f"sweep.top_k: {said} {max(self.sweep.top_k)}, "
                    f"target {target} has {others} sources of other tasks; use at most {others}"
                )
        split = self.runtime.workers * self.training.gradient_accumulation
        recipes = {"full": self.training.full, "few": self.training.few}
        recipes |= {f"shots.{shots}": recipe for shots, recipe in self.training.shots.items()}
        for name, recipe in recipes.items():
            if recipe.batch_size % split:
                raise ValueError(
                    f"training.{name}.batch_size: found {recipe.batch_size}, {self.runtime.workers} workers with "
                    f"gradient_accumulation {self.training.gradient_accumulation} need a multiple of {split}"
                )
        return self

    def _check_tasks(self) -> None:
        for name, source in self.tasks.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"tasks: found {name!r}; a name has lower-case letters, digits, _ and - only")
            if source is None and name not in KNOWN:
                raise ValueError(
                    f"tasks: found {name!r}; the catalogue has {', '.join(KNOWN)}, other tasks need a table"
                )
        for field in ("sources", "targets"):
            for text in getattr(self, field):
                task = Slice.parse(text).task
                if task not in self.tasks:
                    raise ValueError(f"{field}: found {text}; tasks has {', '.join(self.tasks)}")

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
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's configuration.

    Args:
        path: a YAML file.
        overrides: ``a.b=c`` settings that take the place of the file's, values written as in YAML.

    Raises:
        PituneError: the file cannot be read or a field is wrong; one line that names file, field, what was found and
            what would be right.
    """
    try:
        base = OmegaConf.create(_with_text_keys(OmegaConf.to_container(OmegaConf.load(path))))
    except FileNotFoundError as error:
        raise PituneError(f"{path}: no such file; give a study's YAML, such as configs/quickstart.yaml") from error
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise PituneError(f"{path}: cannot be read as YAML ({reason(error)})") from error
    if not OmegaConf.is_dict(base):
        raise PituneError(f"{path}: holds a list; a study has settings by name, as in configs/quickstart.yaml")
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise PituneError(f"--set {override}: found no value; write --set training.few.steps=30")
    try:
        values = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError, yaml.YAMLError) as error:
        raise PituneError(f"{path}: cannot be put together ({' '.join(str(error).split())})") from error
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise PituneError(f"{path}: {_first(error, StudyConfig)}") from error


def _with_text_keys(value: Any) -> Any:
    """Make every key text, as those of ``--set`` are: ``training.shots.4.steps=30`` then meets the file's ``4``."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(held) for key, held in value.items()}
    return [_with_text_keys(held) for held in value] if isinstance(value, list) else value


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """Say what the first wrong field of ``model`` is, what was found and what would be right."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    names, beside = _walk(model, problem["loc"])
    message = " ".join(problem["msg"].removeprefix("Value error, ").split()).replace("tuple", "list")
    found = str(problem["input"])
    known = ", ".join(beside)
    said = {
        "within": f".{message}",
        "missing": ": is missing",
        "extra_forbidden": f": is no setting; there are {known}",
        "union_tag_not_found": f".kind: is missing; name one of {known}",
        "union_tag_invalid": f".kind: found {problem.get('ctx', {}).get('tag')}; it is one of {known}",
        "value_error": f": {message}",
    }.get(
        problem["type"], f": found {found if len(found) < 60 else found[:57] + '…'}; {message[0].lower()}{message[1:]}"
    )
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (".".join(names) + said).removeprefix(": ") + more


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Follow pydantic's location of an error.

    Returns:
        The names as they stand in the file, without pydantic's own; and what may stand beside the last of them (or, at
        a union of kinds, the kinds).
    """
    names: list[str] = []
    beside: list[str] = []
    here: Any = model
    for part in location:
        if part in _kinds(here):  # the tag of a union, which the file has not
            here = _kinds(here)[str(part)]
            continue
        if isinstance(here, type) and issubclass(here, BaseModel):
            beside = list(here.model_fields)
            field = here.model_fields.get(str(part))
            here = _without_none(field.annotation) if field else None
        elif get_origin(here) is dict:
            here = _without_none(get_args(here)[1])
        if part != "[key]":
            names.append(str(part))
    return names, list(_kinds(here)) or beside


def _kinds(annotation: Any) -> dict[str, Any]:
    """Return the models of a union that ``kind`` tells apart, by their kinds; of anything else: none."""
    found = [part for part in get_args(annotation) if "kind" in getattr(part, "model_fields", {})]
    return {part.model_fields["kind"].default: part for part in found}


def _without_none(annotation: Any) -> Any:
    """Return the model of an optional one; anything else as it is."""
    left = [part for part in get_args(annotation) if part is not type(None)]
    return left[0] if len(left) == 1 and type(None) in get_args(annotation) else annotation
