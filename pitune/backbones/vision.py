"""Vision encoders: frozen networks that turn a picture into a few vectors, which a text encoder can read as tokens.

=====================================================  ===============================================================
what a URI names                                       who reads it
=====================================================  ===============================================================
a folder with ``config.json``                          transformers: any of its vision models, also those of CLIP and
                                                       SigLIP; timm's too, where timm is installed
a ``.onnx`` file                                       DINOv2 (arXiv 2304.07193), whose weights are taken out of it
a ``.pth`` file, or a folder with one                  EfficientNet-Lite
=====================================================  ===============================================================

No expert ever acts in one: what it makes of a picture is computed once and kept on the disk (see ``features``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from pitune.backbones.efficientnet import read_lite
from pitune.backbones.huggingface import LOCAL, open_model
from pitune.errors import PituneError, reason

if TYPE_CHECKING:
    from PIL.Image import Image

PREPARATION = 1
"""The version of what is done to a picture before an encoder sees it; features of another one are not used."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The mean and the deviation of ImageNet's pixels, by channel, of values from 0 to 1."""
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
"""What the EfficientNet-Lites take: (value - 127) / 128, of values from 0 to 255."""


class VisionEncoder(nn.Module):
    """A frozen vision encoder, always in evaluation mode and float32.

    Args:
        model: what :attr:`features` calls.
        features: gives, for pixels (rows, 3, side, side), a grid of features (rows, width, height, width) and one
            vector for the whole picture, (rows, width), or None where the model has none.
        prepare: turns a picture (RGB, upright) into pixels (3, side, side).
        side: the pixels a side that it takes.
    """

    def __init__(
        self,
        model: nn.Module,
        features: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        prepare: Callable[[Image], Tensor],
        side: int,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self._features, self.prepare, self.side = features, prepare, side
        grid, whole = self._features(torch.zeros(1, 3, side, side))
        self.width, self.has_whole = grid.shape[1], whole is not None

    def tokens(self, grid: int) -> int:
        """Return how many tokens a picture gives, of a grid of so many cells a side."""
        return grid * grid + self.has_whole

    def train(self, mode: bool = True) -> VisionEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, grid: int) -> Tensor:
        """Return a picture's tokens: the one of the whole picture where there is one, then those of a grid, row by row.

        Args:
            pixels: (rows, 3, side, side).
            grid: the cells a side; each is the mean of the features in it.

        Returns:
            (rows, tokens, width), float32.
        """
        features, whole = self._features(pixels)
        cells = nn.functional.adaptive_avg_pool2d(features.float(), grid).flatten(2).transpose(1, 2)
        return cells if whole is None else torch.cat([whole.float().unsqueeze(1), cells], dim=1)


def open_vision(path: Path, uri: str) -> VisionEncoder:
    """Open the vision encoder that a URI names.

    Args:
        path: the file or folder that it was fetched to.
        uri: for errors.

    Raises:
        PituneError: there is none, it is damaged, or it would run code of its own.
    """
    try:
        if path.suffix == ".onnx":
            return _dino(path)
        weights = [path] if path.suffix == ".pth" else sorted(path.rglob("*.pth"))
        if len(weights) == 1 and not (path / "config.json").exists():
            lite = read_lite(weights[0])
            return VisionEncoder(lite, lambda pixels: (lite(pixels), None), _squared(lite.side, *LITE), lite.side)
        return _from_transformers(path)
    except Exception as error:  # transformers, onnx and torch raise whatever they like
        raise PituneError(f"backbone.vision: {uri} is no vision encoder that pitune reads ({reason(error)})") from error


# --- transformers --------------------------------------------------------------------------------------------------


def _from_transformers(folder: Path) -> VisionEncoder:
    from transformers import AutoImageProcessor

    model = open_model(folder)
    processor = AutoImageProcessor.from_pretrained(folder, **LOCAL)  # type: ignore[no-untyped-call]
    model = getattr(model, "vision_model", model)  # of a dual encoder, the tower for pictures

    def prepare(picture: Image) -> Tensor:
        """Let the model's own processor see to it."""
        pixels: Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return pixels

    from PIL import Image as pillow

    _, height, side = prepare(pillow.new("RGB", (64, 48))).shape
    if height != side:
        raise ValueError(f"its processor makes {side} x {height} pixels of 64 x 48; one that makes a square is needed")
    return VisionEncoder(model, _grid_of(model, side), prepare, side)


def _grid_of(model: nn.Module, side: int) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return what gives a transformers model's features as a grid: a convolutional one's or a ViT's."""

    def features(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        states: Tensor = model(pixel_values=pixels).last_hidden_state
        if states.dim() == 4:
            return states, None
        # A ViT's patches are the last of its tokens; before them are a class token and registers, or nothing.
        patch = getattr(model.config, "patch_size", None)
        tokens, cells = states.shape[1], side // patch if isinstance(patch, int) else side
        if cells * cells > tokens:  # a pyramid's patches (Swin's) have been merged on the way
            cells = math.isqrt(tokens)
        first = tokens - cells * cells
        grid = states[:, first:].transpose(1, 2).reshape(len(states), -1, cells, cells)
        return grid, states[:, 0] if first else None

    return features


def _squared(side: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Callable[[Image], Tensor]:
    """Return what brings a picture to a square, whatever its shape, so that nothing of it is cut off."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, deviation))

    def prepare(picture: Image) -> Tensor:
        from PIL import Image as pillow

        small = picture.resize((side, side), pillow.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
        return (values - shift) / scale

    return prepare


# --- DINOv2 out of an ONNX file ------------------------------------------------------------------------------------

DINO_SIDE = 224
"""The pixels a side that pictures are brought to: 16 x 16 patches."""
BACKBONE = "backbone."
"""What the names of the encoder's weights begin with, where a model has more than the encoder."""
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Names of transformers' before its fifth version, and since."""


def _dino(file: Path) -> VisionEncoder:
    """Read a DINOv2 (ViT-S/14 or larger) that was exported to ONNX; nothing of the graph is run."""
    from transformers import Dinov2Config, Dinov2Model

    state = _dino_state(file)
    width = state["embeddings.cls_token"].shape[-1]
    patches = state["embeddings.position_embeddings"].shape[1] - 1
    patch = state["embeddings.patch_embeddings.projection.weight"].shape[-1]
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // 64,
        mlp_ratio=4,
        patch_size=patch,
        image_size=round(patches**0.5) * patch,
    )
    model = Dinov2Model(config)
    state.setdefault("embeddings.mask_token", torch.zeros(1, width))  # of use in training only, and not exported
    model.load_state_dict(state)
    return VisionEncoder(model, _grid_of(model, DINO_SIDE), _squared(DINO_SIDE, *IMAGENET), DINO_SIDE)


def _dino_state(file: Path) -> dict[str, Tensor]:
    """Return the weights of the encoder by transformers' names.

    What the export took the names from is told by the nodes that it goes into: the weights of linear layers by the
    products that are named after the layers, the position embeddings (the class token's apart) by the node's folder.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    held = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    state = {name.removeprefix(BACKBONE): tensor for name, tensor in held.items() if name.startswith(BACKBONE)}
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        top, *path = node.name.strip("/").split("/")
        nameless = [held[name] for name in node.input if name in held and not name.startswith(BACKBONE)]
        if f"{top}." != BACKBONE or not nameless or nameless[0].dtype != torch.float32:
            continue
        if node.op_type == "MatMul":
            state[".".join([*path[:-1], "weight"])] = nameless[0].T.contiguous()
        elif path[0] == "embeddings" and nameless[0].dim() == 3:
            positions[node.op_type] = nameless[0]
    if positions.keys() != {"Concat", "Reshape"}:
        raise ValueError(
            f"has {len(positions)} of a DINOv2's two position embeddings, the class token's and the patches'"
        )
    state["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name
