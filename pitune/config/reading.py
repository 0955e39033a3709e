"""A YAML file, with settings of the command line in place of the file's, as plain values.

Notable:
- references to other settings (``${study}``) and to the environment (``${oc.env:HOME}``) are followed;
- whatever stands in the file, reading it ends soon: how deep it goes, what its aliases grow to and how many references
  it has is limited, and it has no tags, which can make any object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pitune.errors import PituneError, reason
from pitune.settings import shown, tidy

DEEPEST = 20
"""Levels of lists and mappings in each other."""
MOST_NODES = 300_000
"""Values, keys, lists and mappings of a file, each alias counted as what it stands for."""
MOST_REFERENCES = 20
"""References to other settings: each may stand in what another one refers to, and double it."""
LONGEST = 1000
"""Bits of a whole number; Python refuses to write out much longer ones."""
WRONG_FORM = (ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError, OmegaConfBaseException)
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
FLOAT = re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$")


class _Loader(SafeLoader):  # type: ignore[misc]
    """YAML in which 1e-3 is a number, as it is everywhere else, and a date is text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(SafeDumper):  # type: ignore[misc]
    """Writes what :class:`_Loader` reads back as it was."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))


def to_yaml(values: Any) -> str:
    """Return plain values as the YAML that :func:`read` reads."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the file holds, with the overrides (``a.b=c``) in and references followed; every key is text.

    Raises:
        PituneError: the file or an override cannot be read, or a reference leads nowhere.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_form(text)
        values = _plain(yaml.load(text, Loader=_Loader))
    except FileNotFoundError as error:
        raise PituneError(f"{path}: no such file; give a study's YAML, such as configs/quickstart.yaml") from error
    except (OSError, *WRONG_FORM) as error:
        raise PituneError(f"{path}: cannot be read as YAML ({tidy(reason(error), 200)})") from error
    if not isinstance(values, dict | None):
        held = "a list" if isinstance(values, list) else shown(values)
        raise PituneError(f"{path}: holds {held}; a study has settings by name, as in configs/quickstart.yaml")
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise PituneError(f"--set {shown(override)}: found no value; write --set training.few.steps=30")
    try:
        return _together(text, values or {}, overrides)
    except WRONG_FORM as error:
        raise PituneError(f"{path}: cannot be put together ({tidy(reason(error), 200)})") from error


def _plain(value: Any) -> Any:
    """Make every key text, as those of ``--set`` are: ``training.shots.4.steps=30`` then meets the file's ``4``.

    Raises:
        ValueError: a number is too long to be written out.
    """
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, int) and value.bit_length() > LONGEST:
        raise ValueError(f"found {shown(value)}; that is longer than any setting's")
    return [_plain(held) for held in value] if isinstance(value, list) else value


def _together(text: str, values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the values with the overrides in and references followed; without any, just the values."""
    if not overrides and "${" not in text:
        return values
    for override in overrides:
        try:
            _check_form(override.split("=", 1)[1])
        except (ValueError, yaml.YAMLError) as error:
            raise PituneError(
                f"--set {shown(override)}: cannot be read as YAML ({tidy(reason(error), 200)})"
            ) from error
    references = sum(len(re.findall(r"\$\{(?!oc\.env:)", part)) for part in (text, *overrides))
    if references > MOST_REFERENCES:
        raise ValueError(f"found {references} references to other settings; a study has at most {MOST_REFERENCES}")
    merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(list(overrides)))
    return dict(_plain(OmegaConf.to_container(merged, resolve=True)))


def _check_form(text: str) -> None:
    """Refuse what no study needs and what a reader of YAML chokes on or passes over in silence.

    Raises:
        ValueError: a tag, a key that its mapping has already, aliases in what they stand for, or too much of anything.
        yaml.YAMLError: it is no YAML.
    """
    form = _Form()
    event: Any
    for event in yaml.parse(text, Loader=SafeLoader):
        try:
            form.take(event)
        except ValueError as error:
            raise ValueError(f"line {event.start_mark.line + 1}: {error}") from error


class _Form:
    """A YAML text as it is read: what is open, and how much there was."""

    def __init__(self) -> None:
        self.open: list[_Open] = []
        self.sizes: dict[str, int] = {}
        """Nodes by anchor."""
        self.nodes = 0

    def take(self, event: Any) -> None:
        """Take the parser's next event."""
        if isinstance(event, yaml.CollectionEndEvent):
            ended = self.open.pop()
            self.sizes[ended.anchor] = self.nodes - ended.before
        is_alias, is_scalar = isinstance(event, yaml.AliasEvent), isinstance(event, yaml.ScalarEvent)
        is_start = isinstance(event, yaml.CollectionStartEvent)
        if not (is_alias or is_scalar or is_start):
            return
        if self.open:
            self.open[-1].take(event.value if is_scalar else None)
        if is_alias and event.anchor not in self.sizes:
            raise ValueError(f"the alias *{event.anchor} stands in what it is an alias of, or for nothing")
        if not is_alias and event.tag:
            raise ValueError(f"found the tag {event.tag}; write values without tags")
        self.nodes += self.sizes[event.anchor] if is_alias else 1
        if is_scalar:
            self.sizes[event.anchor] = 1
        if is_start:
            self.open.append(_Open(event.anchor, self.nodes - 1, isinstance(event, yaml.MappingStartEvent)))
        if len(self.open) > DEEPEST or self.nodes > MOST_NODES:
            raise ValueError(f"more than {DEEPEST} levels, or {MOST_NODES:,} values with its aliases written out")


class _Open:
    """A list or a mapping that is being read, with the keys that a mapping has so far."""

    def __init__(self, anchor: str, before: int, mapping: bool) -> None:
        self.anchor, self.before = anchor, before
        self.mapping = self.at_key = mapping
        self.keys: set[str] = set()

    def take(self, scalar: str | None) -> None:
        """Take the next key or value; ``scalar``: its text, if it is no list or mapping."""
        if self.at_key and scalar is not None:
            if scalar in self.keys:
                raise ValueError(f"{shown(scalar)} is there twice; name each once")
            self.keys.add(scalar)
        self.at_key = self.mapping and not self.at_key
