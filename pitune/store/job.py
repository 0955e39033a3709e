"""Jobs and fingerprints: what an artifact is made from, as one hash."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMAT = 1
"""Version of the layout; part of every fingerprint, so that a change of meaning makes everything anew."""


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Return the sha256 of ``inputs`` written as canonical JSON; equal inputs give equal fingerprints."""
    text = json.dumps({"format": FORMAT, **inputs}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """Artifacts to be made together, and everything that they are made from."""

    artifacts: tuple[str, ...]
    inputs: Mapping[str, Any]

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the inputs."""
        return fingerprint_of(self.inputs)
