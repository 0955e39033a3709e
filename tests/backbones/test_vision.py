"""Vision encoders against the models that they were made from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from tinybridge import PROCESSOR
from tinydual import save_dual
from tinymodel import save_encoder
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Dinov2Config, Dinov2Model

from pitune.backbones.efficientnet import EfficientNetLite
from pitune.backbones.vision import VisionEncoder, open_vision
from pitune.errors import PituneError

SIDE = 16
PLAIN: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24, "intermediate_size": 32}
PATCHES = {**PLAIN, "image_size": SIDE, "patch_size": 4}
STAGES = {"hidden_sizes": [8, 12], "depths": [1, 1]}
MODELS: dict[str, tuple[dict[str, Any], int | None, int]] = {
    "vit": (PATCHES, 1, 4),
    "dinov2": (PATCHES, 1, 4),
    "dinov2_with_registers": (PATCHES, 5, 4),
    "siglip_vision_model": (PATCHES, 0, 4),
    "resnet": ({**STAGES, "embedding_size": 8, "layer_type": "basic"}, None, 2),
    "convnext": ({**STAGES, "num_stages": 2}, None, 2),
    "swin": (
        {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
        0,
        4,
    ),
}
"""By transformers' name: a tiny model's shape; how many tokens come before the patches, None where it gives a grid
itself; and the cells a side."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


def random(model: nn.Module) -> nn.Module:
    """Give a model random weights, wider than usual, so that pictures differ."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
    return model.eval()


def save(folder: Path, family: str) -> Path:
    model: Any = random(AutoModel.from_config(AutoConfig.for_model(family, **MODELS[family][0])))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def picture(width: int = 30, height: int = 20) -> Image.Image:
    """Return a smooth picture with some noise."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    noise = np.random.default_rng(0).integers(0, 60, (height, width))
    return Image.fromarray(np.stack([across, down, (across + noise) % 256], axis=-1).astype(np.uint8))


def pooled(grid: Tensor, cells: int) -> Tensor:
    """Take the means of a grid's cells by hand, (cells * cells, width), for a grid (width, side, side)."""
    side = grid.shape[-1]
    edges = [(side * cell // cells, -(-side * (cell + 1) // cells)) for cell in range(cells)]
    return torch.stack([grid[:, top:end, left:right].mean((1, 2)) for top, end in edges for left, right in edges])


# --- transformers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_a_model_of_transformers_gives_its_own_states(family: str, tmp_path: Path) -> None:
    _, before, side = MODELS[family]
    encoder = open_vision(save(tmp_path, family), "somewhere")
    model: Any = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.stack([encoder.prepare(picture()), torch.randn(3, SIDE, SIDE)])
    states = model(pixel_values=pixels).last_hidden_state
    assert encoder.side == SIDE
    if before is None:
        grid, whole = states, None
    else:
        grid = states[:, before:].transpose(1, 2).unflatten(2, (side, side))
        whole = states[:, 0] if before else None
    assert (encoder.width, encoder.has_whole) == (grid.shape[1], whole is not None)
    assert grid.shape[2:] == (side, side)
    for cells in (1, 2, 3, side):
        found = encoder(pixels, cells)
        assert found.shape == (2, encoder.tokens(cells), encoder.width)
        for row in range(2):
            expected = pooled(grid[row], cells)
            if whole is not None:
                expected = torch.cat([whole[row : row + 1], expected])
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_of_a_dual_encoder_the_tower_for_pictures_is_taken(tmp_path: Path) -> None:
    encoder = open_vision(save_dual(tmp_path, "clip"), "somewhere")
    model = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, encoder.side, encoder.side)
    states = model.vision_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encoder(pixels, 3), states)  # 3 x 3 patches: row by row, behind the class token


def test_pictures_are_prepared_as_the_models_own_processor_says(tmp_path: Path) -> None:
    encoder = open_vision(save(tmp_path, "vit"), "somewhere")
    small = np.array(picture().resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    expected = (torch.from_numpy(small).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(encoder.prepare(picture()), expected, atol=1e-5, rtol=1e-5)


def test_an_encoder_never_trains(tmp_path: Path) -> None:
    encoder = open_vision(save(tmp_path, "resnet"), "somewhere").train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(torch.randn(1, 3, SIDE, SIDE), 2).requires_grad


# --- DINOv2 out of an ONNX file ------------------------------------------------------------------------------------

OLDER = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
"""What the parts of an attention are called where the file was exported."""
Initializers = dict[str, Tensor]
Nodes = list[tuple[str, str, list[str]]]


def dino(layers: int = 2, width: int = 128) -> Dinov2Model:
    shape = {"num_hidden_layers": layers, "num_attention_heads": width // 64, "mlp_ratio": 4}
    model = random(Dinov2Model(Dinov2Config(hidden_size=width, patch_size=14, image_size=42, **shape)))
    assert isinstance(model, Dinov2Model)
    return model


def exported(model: Dinov2Model) -> tuple[Initializers, Nodes]:
    """Return what an export to ONNX leaves of the weights: their initializers, and the nodes that take nameless ones.

    A head, and a product within the encoder that has no weights, are there too.
    """
    held: Initializers = {"head.bias": torch.ones(2), "onnx::MatMul_900": torch.ones(128, 2), "scale": torch.ones(1)}
    nodes: Nodes = [
        ("MatMul", "/head/MatMul", ["states", "onnx::MatMul_900"]),
        ("MatMul", "/backbone/encoder/layer.0/attention/attention/MatMul", ["queries", "keys"]),
        ("Mul", "/backbone/encoder/layer.0/attention/attention/Mul", ["keys", "scale"]),
    ]
    for number, (new, tensor) in enumerate(model.state_dict().items()):
        name = re.sub("[qkvo]_proj", lambda found: OLDER[found[0]], new)
        if name == "embeddings.position_embeddings":
            held["onnx::Concat_57"], held["onnx::Reshape_62"] = tensor[:, :1], tensor[:, 1:]
            nodes.append(("Reshape", "/backbone/embeddings/Reshape_1", ["onnx::Reshape_62", "shape"]))
            nodes.append(("Concat", "/backbone/embeddings/Concat_6", ["onnx::Concat_57", "reshaped"]))
        elif name.endswith(".weight") and tensor.dim() == 2:
            held[f"onnx::MatMul_{number}"] = tensor.T
            path = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes.append(("MatMul", f"/backbone/{path}/MatMul", ["input", f"onnx::MatMul_{number}"]))
        elif name != "embeddings.mask_token":  # is of use in training only
            held[f"backbone.{name}"] = tensor
    return held, nodes


def write(file: Path, held: Initializers, nodes: Nodes) -> Path:
    initializers = [numpy_helper.from_array(tensor.contiguous().numpy(), name) for name, tensor in held.items()]
    made = [helper.make_node(kind, given, [f"{name}_output_0"], name=name) for kind, name, given in nodes]
    onnx.save(helper.make_model(helper.make_graph(made, "main", [], [], initializers)), file)
    return file


@torch.no_grad()
def test_dino_out_of_its_onnx_file_gives_what_it_gives(tmp_path: Path) -> None:
    model = dino()
    encoder = open_vision(write(tmp_path / "dino.onnx", *exported(model)), "somewhere")
    assert (encoder.side, encoder.width, encoder.has_whole) == (224, 128, True)
    pixels = torch.stack([encoder.prepare(picture()), torch.randn(3, 224, 224)])
    states = model(pixel_values=pixels).last_hidden_state  # 16 x 16 patches
    assert (states[0] - states[1]).abs().max() > 0.1
    torch.testing.assert_close(encoder(pixels, 16), states, atol=1e-5, rtol=1e-5)
    for row in range(2):
        grid = states[row, 1:].T.unflatten(1, (16, 16))
        torch.testing.assert_close(encoder(pixels, 4)[row, 1:], pooled(grid, 4), atol=1e-5, rtol=1e-5)


def test_pictures_for_dino_are_squared_with_imagenets_mean(tmp_path: Path) -> None:
    encoder = open_vision(write(tmp_path / "dino.onnx", *exported(dino(1, 64))), "somewhere")
    expected = squared(224) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    expected /= torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(encoder.prepare(picture()), expected, atol=1e-5, rtol=1e-5)


def squared(side: int) -> Tensor:
    """Return the picture's values, (3, side, side)."""
    small = picture().resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1)


def without(part: str) -> Callable[[Initializers, Nodes], None]:
    def change(held: Initializers, nodes: Nodes) -> None:
        for name in [name for name in held if part in name]:
            del held[name]
        nodes[:] = [node for node in nodes if part not in node[1]]

    return change


WRONG: dict[str, tuple[Callable[[Initializers, Nodes], None], str]] = {
    "no class token": (without("cls_token"), "cls_token"),
    "a linear layer less": (without("layer.1/mlp/fc1"), r"layer.1.mlp.fc1.weight"),
    "a bias less": (without("layer.1.norm1.bias"), r"layer.1.norm1.bias"),
    "a weight more": (lambda held, _: held.update({"backbone.more": torch.ones(1)}), "more"),
    "no positions": (without("embeddings/"), "0 of a DINOv2's two position embeddings"),
    "no positions of patches": (without("Reshape"), "1 of a DINOv2's two position embeddings"),
    "another model": (without("backbone"), "position embeddings"),
    "another shape": (lambda held, _: held.update({"backbone.layernorm.weight": torch.ones(3)}), "layernorm.weight"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_of_another_model_is_one_line(what: str, tmp_path: Path) -> None:
    held, nodes = exported(dino(2, 64))
    change, why = WRONG[what]
    change(held, nodes)
    refused(write(tmp_path / "dino.onnx", held, nodes), why)


# --- EfficientNet-Lite; what is none at all ------------------------------------------------------------------------


def lite() -> dict[str, Tensor]:
    """Return the state of a narrow EfficientNet-Lite0."""
    state: dict[str, Tensor] = {}

    def layer(conv: str, norm: str, *shape: int) -> None:
        state[f"{conv}.weight"] = torch.randn(shape)
        state.update({f"{norm}.{name}": torch.randn(shape[0]) * 0.1 for name in ("bias", "running_mean")})
        state.update({f"{norm}.{name}": torch.rand(shape[0]) + 0.5 for name in ("weight", "running_var")})

    layer("_conv_stem", "_bn0", 2, 3, 3, 3)
    width = 2
    for number, outside in enumerate((2, 3, 3, 4, 4, *[5] * 3, *[6] * 3, *[7] * 4, 320)):
        name = f"_blocks.{number}."
        layer(f"{name}_depthwise_conv", f"{name}_bn1", width, 1, 3, 3)
        layer(f"{name}_project_conv", f"{name}_bn2", outside, width, 1, 1)
        width = outside
    layer("_conv_head", "_bn1", 6, width, 1, 1)
    return state


@pytest.mark.parametrize("where", ["model.pth", "package/models/model.pth"])
@torch.no_grad()
def test_a_file_or_a_package_with_one_is_an_efficientnet(where: str, tmp_path: Path) -> None:
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    state = lite()
    torch.save(state, tmp_path / where)
    encoder = open_vision(tmp_path if "/" in where else tmp_path / where, "somewhere")
    assert (encoder.side, encoder.width, encoder.has_whole, encoder.tokens(7)) == (224, 6, False, 49)
    pixels = encoder.prepare(picture()).unsqueeze(0)
    torch.testing.assert_close(pixels[0], (squared(224) - 127) / 128, atol=1e-5, rtol=1e-5)
    expected = EfficientNetLite(state)(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(pixels, 7), expected)
    assert expected.std() > 0.01


def broken(folder: Path, what: str) -> Path:
    folder.mkdir()
    if what == "two files of PyTorch's":
        for name in ("one.pth", "two.pth"):
            torch.save(lite(), folder / name)
    elif what == "widths that do not fit":
        torch.save({**lite(), "_blocks.4._project_conv.weight": torch.zeros(4, 9, 1, 1)}, folder / "model.pth")
    elif what == "a text as ONNX":
        (folder / "model.onnx").write_text("a text")
        return folder / "model.onnx"
    elif what == "a text encoder":
        save_encoder(folder, "bert")
    elif what == "no processor":
        (save(folder, "vit") / "preprocessor_config.json").unlink()
    elif what == "a pickle":
        model = AutoModel.from_pretrained(save(folder, "vit"))
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    elif what == "code":
        (folder / "own.py").write_text("raise SystemExit('the code of a model folder was run')")
        said = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
        (folder / "config.json").write_text(json.dumps(said))
    elif what == "another side":
        wide = {**PROCESSOR, "size": {"height": SIDE + 4, "width": SIDE + 4}}
        (save(folder, "vit") / "preprocessor_config.json").write_text(json.dumps(wide))
    elif what == "pictures of any shape":
        wide = {**PROCESSOR, "size": {"shortest_edge": SIDE}, "image_processor_type": "CLIPImageProcessor"}
        (save(folder, "resnet") / "preprocessor_config.json").write_text(json.dumps({**wide, "do_center_crop": False}))
    elif what == "nothing there":
        folder.rmdir()
    return folder


@pytest.mark.parametrize(
    "what",
    [
        *("two files of PyTorch's", "widths that do not fit", "a text as ONNX", "a text encoder", "no processor"),
        *("a pickle", "code", "another side", "pictures of any shape", "empty", "nothing there"),
    ],
)
def test_what_is_no_vision_encoder_is_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked whether code may run says yes
    refused(broken(tmp_path / "model", what), WHY.get(what, ""))


WHY = {
    "pictures of any shape": "its processor makes 21 x 16 pixels of 64 x 48",
    "a pickle": "no file named model.safetensors",
    "a text encoder": "image processor",
}
"""What the line must say."""


def refused(path: Path, why: str) -> None:
    with pytest.raises(PituneError, match=rf"^backbone\.vision: somewhere is no vision encoder .*({why})") as error:
        open_vision(path, "somewhere")
    assert "\n" not in str(error.value)


def test_the_token_of_the_whole_picture_comes_first() -> None:
    def look(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        return pixels, pixels.mean((2, 3))

    pixels = torch.arange(48.0).view(1, 3, 4, 4)
    encoder = VisionEncoder(nn.Identity(), look, lambda _: torch.zeros(3, 4, 4), 4)
    assert encoder.tokens(2) == 5
    assert encoder(pixels, 2)[0, :, 0].tolist() == [7.5, 2.5, 4.5, 10.5, 12.5]
