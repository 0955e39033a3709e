"""Dual encoders from Hugging Face (CLIP, SigLIP, VisionTextDualEncoder): a tower for pictures, a tower for texts.

Examples are pictures; candidates' texts are read by the other tower, which an expert may act in as well. A picture is
decoded when its lowest layers are run, and not again as long as what they give is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pitune.assets import known_hash
from pitune.backbones.base import Backbone, BackboneSettings, Precision
from pitune.backbones.classtoken import CLASS_TOKEN
from pitune.backbones.features import Features
from pitune.backbones.huggingface import LOCAL, largest_stack, open_model, padded, refused
from pitune.backbones.tower import Encoded, Inputs, Tower
from pitune.errors import PituneError

if TYPE_CHECKING:
    from pitune.tasks.pictures import Picture
    from pitune.tasks.task import Example

IMAGE, TEXT = "image", "text"
MODELS = ("clip", "siglip", "vision-text-dual-encoder")
"""The types of models whose towers and pooling are known to fit."""
PATCHES = 200
"""A picture's, about: 224 pixels in patches of 16."""


class DualSettings(BackboneSettings):
    """A dual encoder of pictures and texts."""

    reads: ClassVar[tuple[str, ...]] = ("image",)
    kind: Literal["dual"] = "dual"
    uri: str = Field(description="where the model's folder comes from: a path, hf:… or pypi:…")
    max_tokens: int = Field(64, ge=4, le=512, description="longer candidates' texts are cut")

    def open(self, folder: Path, precision: Precision = "fp32") -> DualBackbone:
        """Open the encoder in ``folder``; what it makes of pictures is kept on the disk."""
        return DualBackbone(folder, self, precision, f"{known_hash(folder)[:32]}-{precision}")

    def cost(self, example: Example) -> int:
        """Return about how many patches a picture has: all are brought to one size."""
        return PATCHES


class DualBackbone(Backbone):
    """A frozen Hugging Face dual encoder.

    Args:
        folder: a model folder in Hugging Face's layout (config, safetensors weights, tokenizer, image processor).
        settings: the texts' length.
        precision: of the frozen matrices.
        kept: under what name the embeddings of pictures are kept on the disk where no expert acts on them; None: not.

    Attributes:
        side: the pixels a side that pictures are brought to.

    Raises:
        PituneError: the folder holds no dual encoder that transformers can read without running code from it.
    """

    def __init__(
        self, folder: Path, settings: DualSettings, precision: Precision = "fp32", kept: str | None = None
    ) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer  # takes seconds

        try:
            found = AutoConfig.from_pretrained(folder, **LOCAL).model_type
            if found not in MODELS:
                raise PituneError(f"model_type: found {found}; pitune reads {', '.join(MODELS)}")
            model = open_model(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
            processor = AutoImageProcessor.from_pretrained(folder, **LOCAL)  # type: ignore[no-untyped-call]
        except Exception as error:  # transformers and its tokenizers raise whatever they like
            raise refused(settings, "is not a dual encoder that transformers reads", error) from error
        super().__init__(model, _towers(model, settings.uri), IMAGE, TEXT, precision)
        self.tokenizer, self.processor, config = tokenizer, processor, model.config
        # SigLIP's texts are filled up to one length and read without a mask: so it was trained.
        self._fills = config.model_type == "siglip"
        longest = int(config.text_config.max_position_embeddings)
        self._most = longest if self._fills else min(settings.max_tokens, longest)
        self._kept = kept
        try:
            self.side = _side(processor)
            self._patches = (self.side // int(config.vision_config.patch_size)) ** 2 + 1
            self.try_out(self.encode_texts(["a text"])[0])
            blank = Encoded(IMAGE, None, self._patches, b"")
            self.try_out(blank)
            self.try_class_token(blank)
        except Exception as error:
            raise refused(settings, "embeds no text or no picture", error) from error

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return each example's picture, not decoded."""
        # A task of pictures has one in every example.
        return self.encode_pictures([example.picture for example in examples if example.picture is not None])

    def encode_pictures(self, pictures: Sequence[Picture]) -> list[Encoded]:
        """Return pictures, not decoded."""
        return [Encoded(IMAGE, picture, self._patches, bytes.fromhex(picture.digest)) for picture in pictures]

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Return each text's token ids, cut to ``max_tokens``."""
        if not texts:
            return []
        padding = "max_length" if self._fills else False
        ids = self.tokenizer(list(texts), truncation=True, max_length=self._most, padding=padding)["input_ids"]
        return [Encoded.of_ids(TEXT, one) for one in ids]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Decode pictures, ``pixel_values`` (rows, 3, side, side), or pad ids to the longest, (rows, tokens)."""
        if rows[0].tower == TEXT:
            return self._padded(rows)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            return {"pixel_values": torch.stack(list(threads.map(self._pixels, [row.content for row in rows])))}

    def above(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Give one blank picture for all: the layers above the trunk do not look at it."""
        if rows[0].tower == TEXT:
            return self._padded(rows)
        return {"pixel_values": torch.zeros(1, 3, self.side, self.side)}

    def computed(self, rows: Sequence[Encoded], first: int | None) -> Tensor:
        """Compute what no expert touches; where that is little of a picture, only what is not on the disk."""
        if self._kept is None or first not in (None, CLASS_TOKEN) or rows[0].tower == TEXT:
            return super().computed(rows, first)
        what, shape = ("", (joint_width(self.model),)) if first is None else ("-class-token", (1, self._alone[IMAGE]))
        kept = Features(f"{self._kept}-{self.device.type}{what}", shape, whole=True)
        look = super().computed
        found = kept.of([row.content for row in rows], lambda some: look(self.encode_pictures(some), first))
        return found.to(self.device)

    def embed(self, inputs: Inputs) -> Tensor:
        """Run a tower and its projection."""
        model: Any = self.model
        features = model.get_image_features if inputs.tower == IMAGE else model.get_text_features
        found: Tensor = features(**inputs.tensors).pooler_output
        return found

    def _padded(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        found = padded(rows, self.tokenizer.pad_token_id)
        return {"input_ids": found["input_ids"]} if self._fills else found

    def _pixels(self, picture: Picture | None) -> Tensor:
        """Return a picture as the image processor gives it, (3, side, side); None: a blank one."""
        if picture is None:
            return torch.zeros(3, self.side, self.side)
        pixels: Tensor = self.processor(images=picture.pixels(), return_tensors="pt")["pixel_values"][0]
        return pixels


def joint_width(model: Any) -> int:
    """Return how wide the space is that a dual encoder's pictures and texts share.

    Raises:
        PituneError: the model is no dual encoder.
    """
    config = model.config
    if not hasattr(config, "vision_config"):
        raise PituneError(f"{type(model).__name__} is no dual encoder of pictures and texts")
    return int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)  # SigLIP projects nothing


def _side(processor: Any) -> int:
    """Return the pixels a side that pictures are brought to; some models (DINOv2) were made for others."""
    from PIL import Image as pillow

    _, height, side = processor(images=pillow.new("RGB", (64, 48)), return_tensors="pt")["pixel_values"][0].shape
    if height != side:
        raise ValueError(f"its processor makes {side} x {height} pixels of 64 x 48; one that makes a square is needed")
    return int(side)


def _towers(model: Any, uri: str) -> list[Tower]:
    towers = []
    for name, module in ((IMAGE, "vision_model"), (TEXT, "text_model")):
        path, stack = largest_stack(model.get_submodule(module), uri)
        width = getattr(model.config, f"{module.split('_')[0]}_config").hidden_size
        towers.append(Tower(name, f"{module}.{path}", len(stack), width, module))
    return towers


__all__ = ["IMAGE", "TEXT", "DualBackbone", "DualSettings", "joint_width"]
