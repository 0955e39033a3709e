"""A vision model and a text model as one: transformers' VisionTextDualEncoderModel, its projections not trained yet.

That class takes as the vector of a picture or a text what its model calls ``pooler_output``. In most models that is the
first token's state; in BERT and ViT a layer with a tanh comes after it, which sentence encoders never trained. It is
made to hand on what it is given.

A sentence encoder's embedding is the *mean* of its tokens' states, which no pooler gives. So the text model gets one
more layer, whose attention looks at all tokens alike, and which does nothing else. It is a layer like the others of the
same model, and the folder an ordinary one: only the layer's weights are special.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pitune.assets import Asset
from pitune.backbones.huggingface import LOCAL, open_model
from pitune.backbones.vision import DINO_SIDE, IMAGENET, open_vision
from pitune.errors import PituneError, reason

TEXT_MODELS = ("bert", "roberta", "xlm-roberta")
"""The types of text models whose layers are known to be able to average."""
SMALL = 0.01
"""What a pooler's input is multiplied with: tanh changes so small a number by less than a thousandth of it."""
LARGE = 1000.0
"""How much more an averaging layer's mean weighs than the state that it is added to."""


class Pair(NamedTuple):
    """A dual encoder with all that its folder holds.

    Attributes:
        model: a VisionTextDualEncoderModel.
        tokenizer: of texts.
        processor: of pictures.
    """

    model: Any
    tokenizer: Any
    processor: Any

    def save(self, folder: Path) -> None:
        """Write it in Hugging Face's layout."""
        for part in self:
            part.save_pretrained(folder)


def paired(vision: Asset, text: Asset, scale: float) -> Pair:
    """Put a vision model and a text model together. Embeddings are as wide as the text model's states, and theirs.

    Args:
        vision: a folder of transformers', or a DINOv2 exported to ONNX.
        text: the folder of a BERT or RoBERTa.
        scale: what transformers multiplies cosines with.

    Raises:
        PituneError: one of them cannot be read or put to this use.
    """
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    seeing, processor = _vision(vision)
    reading, tokenizer = _text(text)
    try:
        width = reading.config.hidden_size
        config = VisionTextDualEncoderConfig.from_vision_text_configs(
            seeing.config, reading.config, projection_dim=width, logit_scale_init_value=math.log(scale)
        )
        model = VisionTextDualEncoderModel(config, seeing, reading)
        last_bias(seeing)
        nn.init.eye_(model.text_projection.weight)  # of what the text model knows nothing is lost to begin with
        return Pair(model, tokenizer, processor)
    except Exception as error:  # transformers raises whatever it likes
        raise PituneError(
            f"vision: {vision.uri} and text: {text.uri} make no dual encoder ({reason(error)})"
        ) from error


def _vision(asset: Asset) -> tuple[Any, Any]:
    """Open a vision model, its pooler handing on what it is given, and its image processor."""
    from transformers import AutoImageProcessor, PreTrainedModel, ViTImageProcessor

    model = open_vision(asset.path, asset.uri).model
    if not isinstance(model, PreTrainedModel):
        raise PituneError(f"vision: {asset.uri} is no model of transformers, nor a DINOv2; name one of those")
    _hand_on(model)
    if asset.path.is_dir():
        return model, AutoImageProcessor.from_pretrained(asset.path, **LOCAL)  # type: ignore[no-untyped-call]
    mean, deviation = map(list, IMAGENET)
    size = {"height": DINO_SIDE, "width": DINO_SIDE}
    return model, ViTImageProcessor(size=size, resample=3, image_mean=mean, image_std=deviation)


def _text(asset: Asset) -> tuple[Any, Any]:
    """Open a text model that averages its states, and its tokenizer."""
    from transformers import AutoTokenizer

    try:
        model = open_model(asset.path)
        tokenizer = AutoTokenizer.from_pretrained(asset.path, **LOCAL)
        if model.config.model_type not in TEXT_MODELS:
            raise ValueError(f"found model_type {model.config.model_type}; right would be {', '.join(TEXT_MODELS)}")
    except Exception as error:  # transformers and its tokenizers raise whatever they like
        raise PituneError(f"text: {asset.uri} is no text model that can be paired ({reason(error)})") from error
    _average(model)
    _hand_on(model)
    return model, tokenizer


@torch.no_grad()
def _average(model: Any) -> None:
    """Give a BERT a last layer, in which every token becomes the mean of all, normalised as any layer's are."""
    layer = copy.deepcopy(model.encoder.layer[-1])
    for parameter in layer.parameters():  # equal queries and keys: a token attends to all alike
        parameter.zero_()
    nn.init.eye_(layer.attention.self.value.weight)
    nn.init.eye_(layer.attention.output.dense.weight).mul_(LARGE)
    for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm):
        norm.weight.fill_(1)
    model.encoder.layer.append(layer)
    model.config.num_hidden_layers += 1


@torch.no_grad()
def _hand_on(model: Any) -> None:
    """Make a pooler of a linear layer and a tanh, where there is one, hand on the first token's state, made small."""
    dense = getattr(getattr(model, "pooler", None), "dense", None)
    if dense is not None:
        nn.init.eye_(dense.weight).mul_(SMALL)
        dense.bias.zero_()
    model.config._name_or_path = ""  # where it lay on this machine


def last_bias(model: Any) -> nn.Parameter:
    """Return what is added last to what a model pools: adding to it moves all pooled vectors by as much.

    Raises:
        ValueError: it has nothing of the kind.
    """
    pooler: Any = getattr(model, "pooler", None)
    last = pooler.dense if hasattr(pooler, "dense") else getattr(model, "layernorm", None)
    if not isinstance(last, nn.Linear | nn.LayerNorm):
        raise ValueError(f"{model.config.model_type} pools in a way of its own; right would be a BERT, ViT or DINOv2")
    return last.bias


__all__ = ["Pair", "last_bias", "paired"]
