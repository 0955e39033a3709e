"""The projector: what a vision encoder makes of a picture, as tokens that a text encoder can read.

It is trained once by ``pitune bridge`` and frozen afterwards. Its file is a safetensors file whose header says for
which encoders it was trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pitune.errors import PituneError, reason

FORMAT = "projector 1"


class Shape(BaseModel):
    """What a projector's file says of it.

    Attributes:
        text: sha256 of the text encoder's folder.
        vision: sha256 of the vision encoder's file or folder.
        grid: cells a side that a picture is cut into, each a token.
        tokens: how many tokens a picture becomes; the one of the whole picture, where there is one, included.
        inside: the width that the encoder's features have.
        hidden: the width between.
        outside: the width of the text encoder's embeddings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    vision: str
    grid: PositiveInt
    tokens: PositiveInt
    inside: PositiveInt
    hidden: PositiveInt
    outside: PositiveInt


class Projector(nn.Module):
    """Two layers, the same for each token, between two normalizations: (…, inside) to (…, outside), float32."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(
            nn.LayerNorm(shape.inside),
            nn.Dropout(dropout),
            nn.Linear(shape.inside, shape.hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(shape.hidden, shape.outside),
        )
        self.places = nn.Parameter(torch.zeros(shape.tokens, shape.outside))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (rows, tokens, inside) to embeddings (rows, tokens, outside)."""
        found: Tensor = self.layers(features)
        return found + self.places


def to_bytes(projector: Projector) -> bytes:
    """Return a projector as its file."""
    said = {"format": FORMAT, "shape": json.dumps(projector.shape.model_dump(), sort_keys=True)}
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in projector.state_dict().items()}, said)


def read_projector(file: Path) -> Projector:
    """Read a projector, frozen.

    Raises:
        PituneError: the file is damaged, or no projector's.
    """
    try:
        with safe_open(file, framework="pt") as held:
            said: dict[str, Any] = held.metadata() or {}
            if said.get("format") != FORMAT:
                raise ValueError(f"its format is {said.get('format')!r}, not {FORMAT!r}")
            projector = Projector(Shape.model_validate_json(said["shape"]))
            projector.load_state_dict({name: held.get_tensor(name) for name in held.keys()})  # noqa: SIM118
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError, ValidationError) as error:
        raise PituneError(f"{file}: is no projector that pitune bridge has written ({reason(error)})") from error
    return projector.requires_grad_(False).eval()
