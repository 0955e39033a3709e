"""What every section of a study's configuration is, the choice of a kind by name, and what is wrong in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, field_validator, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

LARGEST = 2**53
"""Whole numbers stay below this: what is larger is a slip, and a float no longer tells it from the next one."""


class Settings(BaseModel):
    """A section of the configuration, beside the code that it configures: typed, frozen, without unknown fields.

    Attributes:
        aside: fields that change nothing of what is made from the section, and stay out of its fingerprints.
    """

    aside: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _knows_all(cls, values: Any) -> Any:
        unknown = [str(name) for name in values if name not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            raise at(unknown[0], f"is no setting; there are {', '.join(cls.model_fields)}{_more(unknown)}")
        return values

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: Any) -> Any:
        for number in value if isinstance(value, tuple | dict) else (value,):
            if isinstance(number, int) and abs(number) >= LARGEST:
                raise ValueError(f"found {shown(number)}; a whole number has at most 15 digits")
        return value


class OneOf:
    """The members of a seam's registry as the type of a field: ``Annotated[ExpertKind, OneOf(KINDS)]``.

    The field's value is one member's settings; ``kind`` says whose. A registry may have a single member.
    """

    def __init__(self, members: Sequence[type[Settings]], default: str | None = None) -> None:
        """Take the members, each with ``kind: Literal["its name"] = "its name"``, and the kind that may go unsaid."""
        self.members = {name: member for member in members for name in get_args(member.model_fields["kind"].annotation)}
        self.default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema: the kind is checked first, then the settings are read as that member's."""
        choices = {_tag(name): handler.generate_schema(member) for name, member in self.members.items()}
        return core_schema.no_info_before_validator_function(
            self._named, core_schema.tagged_union_schema(choices, lambda value: _tag(self._kind(value)))
        )

    def _kind(self, value: Any) -> Any:
        return value.get("kind", self.default) if isinstance(value, dict) else getattr(value, "kind", None)

    def _named(self, value: Any) -> Any:
        kind, known = self._kind(value), ", ".join(self.members)
        if not isinstance(value, dict | Settings):
            raise ValueError(f"found {shown(value)}; give its settings by name, kind being one of {known}")
        if kind is None:
            raise at("kind", f"is missing; name one of {known}")
        if not isinstance(kind, str) or kind not in self.members:
            raise at("kind", f"found {shown(kind)}; it is one of {known}")
        return value


def at(name: str, said: str) -> PydanticCustomError:
    """Return the error, for a validator to raise, that setting ``name`` of what is validated is wrong."""
    return PydanticCustomError("at", "{said}", {"said": f".{name}: {said}"})


def within(error: ValidationError) -> PydanticCustomError:
    """Return the error, for a validator to raise, that something within what is validated is wrong."""
    return PydanticCustomError("at", "{said}", {"said": _said(error)})


def wrong(error: ValidationError) -> str:
    """Say in one line which setting is wrong first, what was found and what would be right."""
    return _said(error).removeprefix(": ").removeprefix(".")


def _said(error: ValidationError) -> str:
    """Return what is wrong first, after its place: ``.training.few.steps: found many; …``, or only ``: …``."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    parts = [str(part) for part in problem["loc"] if part != "[key]"]  # pydantic's word, as is the tag of a union
    place = "".join(f".{part}" for part in parts if not part.startswith(_tag("")))
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "at":
            said = message
        case "missing":
            said = ": is missing"
        case "value_error":
            said = f": {message}"
        case _:
            right = message.replace("tuple", "list")
            said = f": found {shown(problem['input'])}; {right[0].lower()}{right[1:]}"
    return tidy(f"{place}{said}", 280) + _more(problems)


def shown(value: Any) -> str:
    """Return a value as it would stand in a file, more or less: in one line, and cut where it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    try:
        return tidy(str(value), 60)
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def tidy(text: str, longest: int) -> str:
    """Return text without line breaks and what does not print, and with at most so many characters."""
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _tag(kind: Any) -> str:
    """Return what pydantic puts into the place of an error at a union; :func:`wrong` takes it out again."""
    return f"[kind] {kind}"


def _more(found: Sequence[Any]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
