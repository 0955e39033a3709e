"""A tiny random bridge: a BERT, a ViT and a projector between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tinymodel import save_encoder
from torch import nn
from transformers import ViTConfig, ViTModel

from pitune.assets import content_hash
from pitune.backbones import Precision
from pitune.backbones.bridge import BridgeBackbone, BridgeSettings
from pitune.backbones.projector import Projector, Shape, to_bytes

SIDE, GRID, WIDTH = 16, 2, 24
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
}


def save_vision(folder: Path) -> Path:
    """Write a random ViT of two layers with an image processor into ``folder``."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(hidden_size=WIDTH, image_size=SIDE, patch_size=4, **shape), add_pooling_layer=False)
    for parameter in model.parameters():  # wider than usual, so that pictures differ
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def save_bridge(folder: Path) -> BridgeSettings:
    """Write the three parts into ``folder``; return the settings that name them."""
    text, vision = save_encoder(folder / "text", "bert"), save_vision(folder / "vision")
    torch.manual_seed(1)
    shape = Shape(
        text=content_hash(text),
        vision=content_hash(vision),
        grid=GRID,
        tokens=GRID * GRID + 1,
        inside=WIDTH,
        hidden=20,
        outside=32,
    )
    projector = Projector(shape)
    nn.init.normal_(projector.places)
    (folder / "projector.safetensors").write_bytes(to_bytes(projector))
    return BridgeSettings(
        uri=str(text), vision=str(vision), projector=str(folder / "projector.safetensors"), max_tokens=24
    )


def open_bridge(folder: Path, precision: Precision = "fp32") -> BridgeBackbone:
    """Write and open it; features are kept in ``folder``."""
    settings = save_bridge(folder)
    backbone = settings.open(Path(settings.uri), precision)
    backbone.features.file = folder / "features.sqlite"
    return backbone
