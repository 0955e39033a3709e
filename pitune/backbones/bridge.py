"""The bridge: a text encoder that reads pictures too, as a few tokens among its own.

A frozen vision encoder turns a picture into features, a frozen projector (see ``pitune bridge``) those into tokens as
wide as the text encoder's embeddings; they stand behind its first token, where a text would begin, and the text follows
them. The experts act in that one encoder: tasks of every modality have the same parameters, and a task of texts gets
what the text encoder alone gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pitune.assets import Asset, fetch
from pitune.backbones.base import BackboneSettings, Precision
from pitune.backbones.features import Features
from pitune.backbones.projector import Projector, Shape, read_projector
from pitune.backbones.text import CHARACTERS, TEXT, TextBackbone, TextSettings
from pitune.backbones.tower import Encoded, Inputs
from pitune.backbones.vision import PREPARATION, VisionEncoder, open_vision
from pitune.errors import PituneError
from pitune.settings import Settings

if TYPE_CHECKING:
    from pitune.tasks.pictures import Picture
    from pitune.tasks.task import Example

PICTURE_TOKENS = 17
"""A picture's, about: a grid of 4 x 4, and one of the whole."""


class Encoders(Settings):
    """A text encoder and a vision encoder, which a projector is for."""

    uri: str = Field(description="where the text encoder's folder comes from: a path, hf:…, pypi:…, npm:… or deb:…")
    vision: str = Field(description="where the vision encoder comes from: likewise")
    pooling: Literal["mean", "first"] = "mean"
    max_tokens: int = Field(64, ge=4, le=8192, description="longer texts are cut")


class BridgeSettings(Encoders, BackboneSettings):
    """A text encoder with a vision encoder and the projector between them."""

    reads: ClassVar[tuple[str, ...]] = ("text", "image", "image+text")
    uris: ClassVar[tuple[str, ...]] = ("uri", "vision", "projector")
    kind: Literal["bridge"] = "bridge"
    projector: str = Field(description="the projector.safetensors that pitune bridge has written for the two")

    def open(self, folder: Path, precision: Precision = "fp32") -> BridgeBackbone:
        """Open the text encoder in ``folder``, the vision encoder and the projector."""
        assets = {name: fetch(getattr(self, name)) for name in self.uris}
        projector = read_projector(assets["projector"].path)
        for name, trained in (("uri", projector.shape.text), ("vision", projector.shape.vision)):
            if assets[name].sha256 != trained:
                raise PituneError(
                    f"backbone.projector: {self.projector} was trained for another {name} (sha256 {trained[:12]}…, "
                    f"{getattr(self, name)} has {assets[name].sha256[:12]}…); run pitune bridge for these two"
                )
        vision = open_vision(assets["vision"].path, self.vision)
        features = kept_features(vision, assets["vision"], projector.shape.grid)
        return BridgeBackbone(folder, self, vision, features, projector, precision)

    @property
    def as_text(self) -> TextSettings:
        """The settings of the text encoder alone."""
        return TextSettings(uri=self.uri, pooling=self.pooling, max_tokens=self.max_tokens)

    def cost(self, example: Example) -> int:
        """Return about how many tokens an example has, up to what is cut off of its text."""
        text = min(len(example.text) // CHARACTERS + 1, self.max_tokens)
        return text + (PICTURE_TOKENS if example.picture is not None else 0)


class Seen(NamedTuple):
    """A row with a picture: token ids, with stand-ins where the picture's tokens come, and the picture."""

    ids: tuple[int, ...]
    picture: Picture


class BridgeBackbone(TextBackbone):
    """A frozen text encoder that reads pictures through a frozen vision encoder and a projector.

    Args:
        folder: the text encoder's.
        settings: name the three parts, and say how the text encoder is read.
        vision: the vision encoder.
        features: where what it makes of pictures is kept.
        projector: between the two.
        precision: of the text encoder's matrices; the others are float32.

    Raises:
        PituneError: one of the encoders is none, the projector is not as wide as they are, or the text encoder has no
            places for the longest text and a picture.
    """

    def __init__(
        self,
        folder: Path,
        settings: BridgeSettings,
        vision: VisionEncoder,
        features: Features,
        projector: Projector,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(folder, settings.as_text, precision)
        self.vision, self.features, self.projector = vision, features, projector
        self.shape = projector.shape
        found = (self.vision.width, self.vision.tokens(self.shape.grid), self.towers[TEXT].width)
        if found != (self.shape.inside, self.shape.tokens, self.shape.outside):
            raise PituneError(
                f"backbone.projector: {settings.projector} is for {self.shape.tokens} tokens, {self.shape.inside} to "
                f"{self.shape.outside} wide; the encoders have {found[1]} tokens, {found[0]} to {found[2]} wide"
            )
        what = f"texts of max_tokens = {settings.max_tokens} tokens and a picture of {self.shape.tokens}"
        self.try_tokens(settings.max_tokens + self.shape.tokens, what)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return each example's token ids, its picture among them where it has one, not decoded."""
        rows = self.encode_texts([example.text for example in examples])
        return [self._seen(row, example.picture) for row, example in zip(rows, examples, strict=True)]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad token ids to the longest, and look the pictures' features up: (pictures, tokens, width), and whose."""
        seen = [row.content.picture for row in rows if isinstance(row.content, Seen)]
        if not seen:
            return super().collate(rows)
        whose = torch.tensor([isinstance(row.content, Seen) for row in rows])
        return {**self.above(rows), "features": self.pictures(seen), "whose": whose}

    def above(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad token ids: the layers above the trunk see no more of a picture than its tokens' places."""
        return super().collate([_with_ids(row) for row in rows])

    def states(self, inputs: Inputs) -> Tensor:
        """Run the text encoder, with the pictures' tokens in their places: (rows, tokens, width)."""
        tensors = dict(inputs.tensors)
        if "features" not in tensors:
            return super().states(inputs)
        features, whose = tensors.pop("features"), tensors.pop("whose")
        embeddings: Tensor = self.model.get_input_embeddings()(tensors.pop("input_ids"))  # type: ignore[operator]
        placed = embeddings.clone()
        placed[whose, 1 : 1 + self.shape.tokens] = self.projector(features).to(placed.dtype)
        model: Any = self.model
        found: Tensor = model(inputs_embeds=placed, **tensors).last_hidden_state
        return found

    def pictures(self, pictures: Sequence[Picture]) -> Tensor:
        """Return pictures' features, (pictures, tokens, width), kept on the disk or computed; in half precision."""
        return self.features.of(pictures, self._look)

    def _look(self, pictures: Sequence[Picture]) -> Tensor:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            pixels = torch.stack(list(threads.map(lambda picture: self.vision.prepare(picture.pixels()), pictures)))
        features: Tensor = self.vision(pixels.to(self.device), self.shape.grid)
        return features

    def _seen(self, row: Encoded, picture: Picture | None) -> Encoded:
        """Put a picture's place behind the first token."""
        if picture is None:
            return row
        first, *rest = row.content
        ids = (first, *[self.tokenizer.pad_token_id or 0] * self.shape.tokens, *rest)
        key = hashlib.blake2b(bytes.fromhex(picture.digest) + row.key, digest_size=16).digest()
        return Encoded(TEXT, Seen(ids, picture), len(ids), key)


def untrained(settings: BridgeSettings, grid: int, hidden: int, dropout: float) -> BridgeBackbone:
    """Open a bridge's two encoders with a new projector between them, to be trained.

    Args:
        settings: name the encoders; its projector need not be there.
        grid: cells a side that a picture is cut into.
        hidden: the width between the projector's layers.
        dropout: within it, while it is trained.
    """
    text, vision = fetch(settings.uri), fetch(settings.vision)
    encoder = open_vision(vision.path, settings.vision)
    shape = Shape(
        text=text.sha256,
        vision=vision.sha256,
        grid=grid,
        tokens=encoder.tokens(grid),
        inside=encoder.width,
        hidden=hidden,
        outside=TextBackbone(text.path, settings.as_text).towers[TEXT].width,
    )
    features = kept_features(encoder, vision, grid)
    return BridgeBackbone(text.path, settings, encoder, features, Projector(shape, dropout))


def kept_features(encoder: VisionEncoder, vision: Asset, grid: int) -> Features:
    """Return where the features of an encoder's are kept."""
    name = f"{vision.sha256[:32]}-{encoder.side}-{grid}-{PREPARATION}"
    return Features(name, (encoder.tokens(grid), encoder.width))


def _with_ids(row: Encoded) -> Encoded:
    return replace(row, content=row.content.ids) if isinstance(row.content, Seen) else row


__all__ = ["BridgeBackbone", "BridgeSettings", "Encoders", "kept_features", "untrained"]
