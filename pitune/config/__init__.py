"""The study's configuration: YAML in, a typed object out, and one clear line for anything wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pitune.config.align import AlignConfig
from pitune.config.bridge import BridgeConfig
from pitune.config.reading import read
from pitune.config.slices import TargetProduct, TransferSettings
from pitune.config.study import StudyConfig
from pitune.errors import PituneError
from pitune.settings import Settings, wrong

__all__ = [
    "AlignConfig",
    "BridgeConfig",
    "StudyConfig",
    "TargetProduct",
    "TransferSettings",
    "load_align",
    "load_bridge",
    "load_config",
]

Kind = TypeVar("Kind", bound=Settings)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's configuration.

    Args:
        path: a YAML file.
        overrides: ``a.b=c`` settings that take the place of the file's, values written as in YAML.

    Raises:
        PituneError: the file cannot be read or a field is wrong; one line that names file, field, what was found and
            what would be right.
    """
    return _load(StudyConfig, path, overrides)


def load_bridge(path: str | Path, overrides: Sequence[str] = ()) -> BridgeConfig:
    """Read what ``pitune bridge`` trains a projector from, as :func:`load_config` reads a study."""
    return _load(BridgeConfig, path, overrides)


def load_align(path: str | Path, overrides: Sequence[str] = ()) -> AlignConfig:
    """Read what ``pitune align`` makes a dual encoder from, as :func:`load_config` reads a study."""
    return _load(AlignConfig, path, overrides)


def _load(kind: type[Kind], path: str | Path, overrides: Sequence[str]) -> Kind:
    values = read(path, overrides)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise PituneError(f"{path}: {wrong(error)}") from error
