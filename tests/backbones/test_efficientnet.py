"""EfficientNet-Lite against the plain, unfused network: narrow random ones, in the files' own names."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pitune.backbones.efficientnet import read_lite
from pitune.errors import PituneError

LITES = {"lite0": (224, (1, 2, 2, 3, 3, 4, 1), 320), "lite1": (240, (1, 3, 3, 4, 4, 5, 1), 320)}
LITES["lite2"] = (260, LITES["lite1"][1], 352)
"""By name: the pixels a side, how often each stage repeats, and the width of the last, which tells Lite1 from 2."""
STAGES = [(3, 1, 1, 4), (3, 2, 6, 5), (5, 2, 6, 6), (3, 2, 6, 7), (5, 1, 6, 8), (5, 2, 6, 9), (3, 1, 6, None)]
"""Kernel, stride, expansion and width of each stage (arXiv 1905.11946, table 1); the widths are ours, but the last."""
BEFORE = {(3, 1): (1, 1), (3, 2): (0, 1), (5, 1): (2, 2), (5, 2): (1, 2), (1, 1): (0, 0)}
"""TensorFlow's zeros before and after an even number of pixels, by kernel and stride; with stride 2 and an odd number
as many on both sides."""


class Padded(nn.Conv2d):
    def forward(self, pixels: Tensor) -> Tensor:
        pads = []
        for size in (pixels.shape[3], pixels.shape[2]):
            kernel, stride = self.kernel_size[0], self.stride[0]
            pads += (kernel // 2, kernel // 2) if size % 2 else BEFORE[kernel, stride]
        return super().forward(nn.functional.pad(pixels, pads))


def convolution(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> Padded:
    return Padded(inside, outside, kernel, stride, groups=groups, bias=False)


def norm(width: int) -> nn.BatchNorm2d:
    """Return a batch norm that takes the next pictures' mean and variance as they are."""
    found = nn.BatchNorm2d(width, eps=1e-3, momentum=1.0)
    nn.init.uniform_(found.weight, 0.7, 1.3)
    nn.init.normal_(found.bias, std=0.5)
    return found


class PlainBlock(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        between = inside * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = convolution(inside, between, 1), norm(between)
        self._depthwise_conv, self._bn1 = convolution(between, between, kernel, stride, between), norm(between)
        self._project_conv, self._bn2 = convolution(between, outside, 1), norm(outside)
        self.widens, self.adds = expansion > 1, stride == 1 and inside == outside

    def forward(self, pixels: Tensor) -> Tensor:
        found = pixels
        if self.widens:
            found = nn.functional.relu6(self._bn0(self._expand_conv(found)))
        found = nn.functional.relu6(self._bn1(self._depthwise_conv(found)))
        found = self._bn2(self._project_conv(found))
        return found + pixels if self.adds else found


class Plain(nn.Module):
    """The network as the ports have it: its state has the files' names, the classifier's and the counters too."""

    def __init__(self, repeats: tuple[int, ...], last: int) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = convolution(3, 4, 3, 2), norm(4)
        blocks, width = [], 4
        for (kernel, stride, expansion, held), count in zip(STAGES, repeats, strict=True):
            for number in range(count):
                blocks.append(PlainBlock(width, held or last, kernel, 1 if number else stride, expansion))
                width = held or last
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = convolution(last, 10, 1), norm(10)
        self._fc = nn.Linear(10, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        found = nn.functional.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            found = block(found)
        return nn.functional.relu6(self._bn1(self._conv_head(found)))


def make(name: str) -> Plain:
    """Make a network whose batch norms are those of some pictures, so that others are still seen at its end.

    In double precision, where only a mistake makes a difference: twenty random blocks amplify float32's errors.
    """
    torch.manual_seed(0)
    plain = Plain(*LITES[name][1:]).double()
    with torch.no_grad():
        plain(torch.rand(2, 3, 128, 128).double() * 2 - 1)
    return plain.eval()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return make("lite0").state_dict()


@pytest.mark.parametrize("name", LITES)
@torch.no_grad()
def test_the_folded_network_gives_what_the_plain_one_gives(name: str, tmp_path: Path) -> None:
    plain, side = make(name), LITES[name][0]
    torch.save(plain.state_dict(), tmp_path / "model.pth")
    network = read_lite(tmp_path / "model.pth")
    assert (network.side, network.width) == (side, 10)
    pixels = torch.rand(2, 3, side, side).double() * 2 - 1
    expected = plain(pixels)
    assert expected.shape == (2, 10, -(-side // 32), -(-side // 32))
    assert expected.std() > 0.3 and (expected[0] - expected[1]).abs().max() > 0.3
    torch.testing.assert_close(network(pixels), expected, atol=1e-9, rtol=1e-9)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_pictures_that_are_not_square_are_padded_on_each_side_by_itself(tmp_path: Path) -> None:
    plain = make("lite0")
    torch.save(plain.state_dict(), tmp_path / "model.pth")
    pixels = torch.rand(1, 3, 65, 96).double() * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(read_lite(tmp_path / "model.pth")(pixels), plain(pixels), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "_conv_stem.weight",
        "_bn0.running_var",
        "_blocks.3._bn0.bias",
        "_blocks.7._depthwise_conv.weight",
        "_blocks.2._project_conv.weight",
        "_bn1.weight",
    ],
)
def test_a_weight_less_is_one_line(state: dict[str, Tensor], name: str, tmp_path: Path) -> None:
    torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "model.pth")
    line = refused(tmp_path / "model.pth")
    assert f"lacks '{name}'" in line or "_project_conv" in name  # one block less: Lite0 is told by their number


@pytest.mark.parametrize(("repeats", "last"), [((1, 1, 1, 1, 1, 1, 1), 320), ((1, 2, 2, 3, 3, 4, 1), 300)])
def test_another_network_is_one_line(repeats: tuple[int, ...], last: int, tmp_path: Path) -> None:
    torch.save(Plain(repeats, last).state_dict(), tmp_path / "model.pth")
    why = f"has {sum(repeats)} blocks, the last one {last} wide; Lite0, 1 and 2 are known"
    assert why in refused(tmp_path / "model.pth")


def test_what_is_no_state_is_one_line(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "model.pth")
    refused(tmp_path / "model.pth")
    torch.save({**state, "_bn0.bias": torch.zeros(5)}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth")


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("how", ["torch", "pickle", "cut", "text", "empty", "missing"])
def test_nothing_but_tensors_is_unpickled(state: dict[str, Tensor], how: str, tmp_path: Path) -> None:
    file, trace = tmp_path / "model.pth", tmp_path / "was here"
    if how == "torch":
        torch.save(OrderedDict(state, evil=Evil(trace)), file)
    elif how == "pickle":
        file.write_bytes(pickle.dumps({"evil": Evil(trace)}, protocol=2))
    elif how == "cut":
        torch.save(state, file)
        file.write_bytes(file.read_bytes()[:5000])
    elif how != "missing":
        file.write_text("a text" if how == "text" else "")
    assert "no file of PyTorch's that holds tensors only" in refused(file)
    assert not trace.exists()


def refused(file: Path) -> str:
    """Return the one line that says why a file is refused."""
    with pytest.raises(PituneError) as error:
        read_lite(file)
    line = str(error.value)
    assert line.startswith(f"{file}: is no EfficientNet-Lite (") and "\n" not in line
    return line
