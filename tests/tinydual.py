"""Tiny random dual encoders, and tasks with pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tinymodel import WORDS, make_task
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from pitune.backbones import Precision
from pitune.backbones.dual import DualBackbone, DualSettings
from pitune.tasks.pictures import Picture
from pitune.tasks.task import Example, Task

LAYERS, WIDTH, SIDE = 3, 32, 12
VOCABULARY = ["[PAD]", "[CLS]", "[UNK]", "[MASK]", *WORDS, "[SEP]"]  # CLIP pools at the last one, the largest number
SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 48}
PROCESSOR = {
    "size": {"height": SIDE, "width": SIDE},
    "do_center_crop": False,
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
}


def save_dual(folder: Path, family: str) -> Path:
    """Write a random dual encoder of three layers a tower, with a tokenizer and an image processor, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = _model(family)
    for parameter in model.parameters():  # wider than usual, so that pictures differ
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    kind = {"siglip": "Siglip"}.get(family, "CLIP")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**PROCESSOR, "image_processor_type": f"{kind}ImageProcessor"})
    )
    return folder


def _model(family: str) -> Any:
    last = len(VOCABULARY) - 1
    text: dict[str, Any] = {**SHAPE, "vocab_size": len(VOCABULARY), "max_position_embeddings": 32, "pad_token_id": 0}
    image = {**SHAPE, "image_size": SIDE, "patch_size": 4}
    if family == "clip":
        text |= {"eos_token_id": last, "bos_token_id": 1}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=WIDTH))
    if family == "siglip":
        return SiglipModel(SiglipConfig(text_config=text, vision_config=image))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        AutoConfig.for_model("vit", **image), AutoConfig.for_model("bert", **text), projection_dim=WIDTH
    )
    return VisionTextDualEncoderModel(config)


def open_dual(folder: Path, precision: Precision = "fp32") -> DualBackbone:
    """Open it."""
    return DualBackbone(folder, DualSettings(uri="tiny", max_tokens=24), precision)


def plain_dual(folder: Path) -> Any:
    """Open it as transformers does."""
    return AutoModel.from_pretrained(folder).eval()


def with_pictures(task: Task, folder: Path) -> Task:
    """Return the task with a picture to each example, drawn from its text and written into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        split: tuple(dataclasses.replace(example, picture=_picture(example, folder)) for example in examples)
        for split, examples in task.splits.items()
    }
    return dataclasses.replace(task, splits=splits)


def make_pictures(folder: Path) -> Task:
    """Make a task of two classes with pictures."""
    return with_pictures(make_task("pictures", 2, 6), folder)


def _picture(example: Example, folder: Path) -> Picture:
    seed = int.from_bytes(hashlib.sha256(example.text.encode()).digest()[:6], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE + 3, SIDE, 3), dtype=np.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(pixels).save(path)
    return Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
