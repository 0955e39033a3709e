"""What tests draw: pictures of noise and of colours, how to stop learning from them; where a key's hash lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pitune.progress import Stage

RNG = np.random.default_rng(0)
COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}


def picture(path: Path, width: int = 9, height: int = 9) -> Path:
    """Write a picture of noise, in the format that its file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(path, path.suffix[1:].upper())
    return path


def colours(folder: Path, side: int) -> dict[str, object]:
    """Write three folders of noisy pictures, each of another colour; return the task that they are, as YAML has it."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(24):
            pixels = np.clip(generator.normal(colour, 40, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return {"train": str(folder), "labels": {name: f"w5{index}" for index, name in enumerate(COLOURS)}}


def place(key: str) -> float:
    """Where a key's hash lies, from 0 to 1."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64


def stopping(after: int | None) -> Callable[[Any], None]:
    """Return who is told of progress, and stops it when so many epochs are over."""

    def tell(stages: Any) -> None:
        (stage,) = stages
        assert isinstance(stage, Stage) and 0 <= stage.done <= stage.total
        if (stage.name, stage.done) == ("epochs", after):
            raise KeyboardInterrupt

    return tell
