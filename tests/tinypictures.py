"""What the tests of the catalogue's pictures draw, and where a key's hash lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def picture(path: Path, width: int = 9, height: int = 9) -> Path:
    """Write a picture of noise, in the format that its file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).save(path, path.suffix[1:].upper())
    return path


def place(key: str) -> float:
    """Where a key's hash lies, from 0 to 1."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
