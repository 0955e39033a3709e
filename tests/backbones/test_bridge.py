"""The bridge against the text encoder alone, and against a computation by hand from its three parts."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tinybridge import GRID, SIDE, open_bridge, save_bridge, save_vision
from tinydual import make_pictures
from tinymodel import open_encoder, save_encoder
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, BertTokenizerFast, ViTModel

from pitune.backbones import cache
from pitune.backbones.bridge import BridgeBackbone, BridgeSettings
from pitune.errors import PituneError
from pitune.tasks.building import MODALITIES
from pitune.tasks.pictures import Picture
from pitune.tasks.task import Example

TEXTS = ["w1 w7 w20", "w3", "w5 w5 w40 w41 w2", "w1 w2 " * 50]
FIRSTS = (None, 0, 1, 2)
"""The lowest layer with an expert: none at all, the lowest, one that has a trunk below it."""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bridge")


@pytest.fixture(scope="module")
def bridge(folder: Path) -> BridgeBackbone:
    return open_bridge(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    examples = make_pictures(tmp_path_factory.mktemp("pictures")).splits["test"]
    return list(dict.fromkeys(one.picture for one in examples if one.picture is not None))


def of(text: str = "", picture: Picture | None = None) -> Example:
    return Example("key", text, 0, picture)


def mixed(pictures: list[Picture]) -> list[Example]:
    """Rows of every kind and length, with one picture under two texts and one text under two pictures."""
    return [
        of(TEXTS[0]),
        of(picture=pictures[0]),
        of(TEXTS[1], pictures[0]),
        of(TEXTS[3], pictures[1]),
        of(TEXTS[1]),
        of(TEXTS[1], pictures[1]),
        of(TEXTS[3]),
    ]


def embedded(bridge: BridgeBackbone, examples: list[Example], first: int | None) -> Tensor:
    with torch.no_grad():
        return bridge(bridge.inputs(bridge.encode(examples), {} if first is None else {"text": first}))


# --- by hand: no code of pitune's ----------------------------------------------------------------------------------


@functools.cache
def plain(folder: Path) -> tuple[Any, Any, Any]:
    """Open the vision encoder, the text encoder and its tokenizer as transformers does."""
    vision = ViTModel.from_pretrained(folder / "vision", add_pooling_layer=False).eval()
    tokenizer = BertTokenizerFast(vocab=str(folder / "text" / "vocab.txt"))
    return vision, AutoModel.from_pretrained(folder / "text").eval(), tokenizer


def features(folder: Path, picture: Picture) -> Tensor:
    """Return a picture's features: the class token's and the means of a grid's cells, in half precision."""
    pixels = Image.open(picture.file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = (torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    states = plain(folder)[0](pixel_values=values.unsqueeze(0)).last_hidden_state[0]
    whole, patches = states[0], states[1:].view(4, 4, -1)  # 16 pixels in patches of 4
    cells = [patches[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1)) for y in range(GRID) for x in range(GRID)]
    return torch.stack([whole, *cells]).half().float()


def projected(folder: Path, seen: Tensor) -> Tensor:
    held = load_file(folder / "projector.safetensors")
    centred = seen - seen.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normal = normal * held["layers.0.weight"] + held["layers.0.bias"]
    between = functional.gelu(normal @ held["layers.2.weight"].T + held["layers.2.bias"])
    return between @ held["layers.5.weight"].T + held["layers.5.bias"] + held["places"]


@torch.no_grad()
def by_hand(folder: Path, example: Example, pooling: str = "mean") -> Tensor:
    """Embed one example, alone and unpadded: the first token, the picture's, the rest of at most 24 of text."""
    _, model, tokenizer = plain(folder)
    ids = tokenizer(example.text, truncation=True, max_length=24)["input_ids"]
    read = model.get_input_embeddings()(torch.tensor(ids))
    if example.picture is not None:
        read = torch.cat([read[:1], projected(folder, features(folder, example.picture)), read[1:]])
    states = model(inputs_embeds=read.unsqueeze(0)).last_hidden_state[0]
    pooled = states[0] if pooling == "first" else states.mean(0)
    return pooled / pooled.norm()


# --- what rows give ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", FIRSTS)
def test_texts_alone_are_what_the_text_encoder_gives(folder: Path, bridge: BridgeBackbone, first: int | None) -> None:
    encoder = open_encoder(folder / "text")
    firsts = {} if first is None else {"text": first}
    with torch.no_grad():
        expected = encoder(encoder.inputs(encoder.encode_texts(TEXTS), firsts))
        candidates = bridge(bridge.inputs(bridge.encode_texts(TEXTS), firsts))
    assert torch.equal(embedded(bridge, [of(text) for text in TEXTS], first), expected)
    assert torch.equal(candidates, expected)


@pytest.mark.parametrize("first", FIRSTS)
def test_pictures_texts_and_both_are_what_the_parts_give_by_hand(
    folder: Path, bridge: BridgeBackbone, pictures: list[Picture], first: int | None
) -> None:
    together = mixed(pictures)
    expected = torch.stack([by_hand(folder, example) for example in together])
    for _ in range(2):  # once computed, once kept
        torch.testing.assert_close(embedded(bridge, together, first), expected, atol=1e-5, rtol=1e-4)
    for kind in (together[1:2], together[2:4], together[:1]):  # alone and unpadded, or all with pictures
        rows = torch.stack([by_hand(folder, example) for example in kind])
        torch.testing.assert_close(embedded(bridge, kind, first), rows, atol=1e-5, rtol=1e-4)
    apart = torch.cdist(expected, expected) + 9 * torch.eye(len(together))
    assert apart.min() > 1e-2  # no two of them are the same: a row under another's key would show


def test_pooling_of_the_first_token(folder: Path, pictures: list[Picture]) -> None:
    settings = save_bridge(folder).model_copy(update={"pooling": "first"})
    backbone = settings.open(Path(settings.uri))
    examples = mixed(pictures)
    expected = torch.stack([by_hand(folder, example, "first") for example in examples])
    torch.testing.assert_close(embedded(backbone, examples, 1), expected, atol=1e-5, rtol=1e-4)


def test_a_long_text_is_cut_and_its_picture_is_not(bridge: BridgeBackbone, pictures: list[Picture]) -> None:
    rows = bridge.encode([of(TEXTS[3]), of(TEXTS[3], pictures[0]), of("", pictures[0]), of("w1")])
    assert [row.cost for row in rows] == [24, 24 + 5, 2 + 5, 3]
    assert len({row.key for row in rows}) == 4
    assert bridge.encode([]) == []
    settings = BridgeSettings(uri="text", vision="vision", projector="projector", max_tokens=24)
    assert settings.cost(of("a word " * 90)) == 24 < settings.cost(of("a word " * 90, pictures[0]))


def test_the_same_picture_elsewhere_is_the_same_row(
    bridge: BridgeBackbone, pictures: list[Picture], tmp_path: Path
) -> None:
    (tmp_path / "copy.png").write_bytes(Path(pictures[0].file).read_bytes())
    copy = dataclasses.replace(pictures[0], file=str(tmp_path / "copy.png"))
    one, other, third = bridge.encode([of("w1", pictures[0]), of("w1", copy), of("w1", pictures[1])])
    assert one.key == other.key != third.key


def test_a_picture_is_decoded_once_for_good(
    folder: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoded: list[Picture] = []
    pixels = Picture.pixels
    monkeypatch.setattr(Picture, "pixels", lambda self: (decoded.append(self), pixels(self))[1])
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path))
    settings, examples = save_bridge(folder), mixed(pictures)
    found = []
    for _ in range(2):  # a second process, as it were: only the disk remembers
        cache.CACHE.clear()
        backbone = settings.open(Path(settings.uri))
        found += [embedded(backbone, examples, first) for first in FIRSTS]
    assert len(decoded) == 2
    assert all(torch.equal(one, other) for one, other in zip(found[:4], found[4:], strict=True))


def test_it_reads_tasks_of_every_modality() -> None:
    assert set(BridgeSettings.reads) == set(MODALITIES)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_and_casts_the_text_encoders_matrices_only(
    folder: Path, pictures: list[Picture], precision: str
) -> None:
    half = open_bridge(folder, precision)  # type: ignore[arg-type]
    assert {one.dtype for part in (half.projector, half.vision) for one in part.parameters()} == {torch.float32}
    expected = torch.stack([by_hand(folder, example) for example in mixed(pictures)])
    found = embedded(half, mixed(pictures), 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


# --- what is refused -----------------------------------------------------------------------------------------------


def rewritten(file: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None]) -> None:
    """Change a projector's header and tensors."""
    with safe_open(file, framework="pt") as held:
        said = dict(held.metadata())
    tensors = load_file(file)
    change(said, tensors)
    save_file(tensors, file, said)


def shaped(**values: int) -> Callable[[dict[str, str], dict[str, Tensor]], None]:
    """Let the header tell of another shape, and the tensors be of it where a side of the projector's is told."""

    def change(said: dict[str, str], tensors: dict[str, Tensor]) -> None:
        said["shape"] = json.dumps({**json.loads(said["shape"]), **values})
        if "inside" in values:
            tensors["layers.0.weight"] = tensors["layers.0.bias"] = torch.ones(values["inside"])
            tensors["layers.0.bias"] = torch.zeros(values["inside"])
            tensors["layers.2.weight"] = torch.zeros(20, values["inside"])

    return change


WRONG: dict[str, tuple[Callable[[dict[str, str], dict[str, Tensor]], None], str]] = {
    "no header": (lambda said, _: said.clear(), "its format is None, not 'projector 1'"),
    "another format": (lambda said, _: said.update(format="projector 2"), "'projector 2', not 'projector 1'"),
    "no shape": (lambda said, _: said.__delitem__("shape"), "shape"),
    "a shape that is none": (lambda said, _: said.update(shape='{"grid": "wide"}'), "grid"),
    "a tensor less": (lambda _, tensors: tensors.__delitem__("places"), "places"),
    "a tensor more": (lambda _, tensors: tensors.update(more=torch.zeros(1)), "more"),
    "tensors of another shape": (shaped(hidden=21), "21"),
    "for another grid": (shaped(grid=3), r"5 tokens, 24 to 32 wide; .* 10 tokens, 24 to 32 wide"),
    "for a wider encoder": (shaped(inside=26), r"5 tokens, 26 to 32 wide; .* 5 tokens, 24 to 32 wide"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_projector_is_one_line(what: str, tmp_path: Path) -> None:
    settings = save_bridge(tmp_path)
    change, why = WRONG[what]
    rewritten(Path(settings.projector), change)
    with pytest.raises(PituneError, match=f"projector.safetensors.*{why}") as error:
        settings.open(Path(settings.uri))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"cut", None])
def test_a_file_that_is_no_projector_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    settings = save_bridge(tmp_path)
    file = Path(settings.projector)
    file.write_bytes(file.read_bytes()[:-4] if content == b"cut" else content or b"")
    if content is None:
        file.unlink()
        file.mkdir()
    with pytest.raises(PituneError, match=r"projector.safetensors: is no projector that pitune bridge has") as error:
        settings.open(Path(settings.uri))
    assert "\n" not in str(error.value)


def test_a_projector_of_other_encoders_is_one_line(tmp_path: Path) -> None:
    settings = save_bridge(tmp_path)
    save_encoder(tmp_path / "other", "distilbert")
    (save_vision(tmp_path / "eyes") / "note.txt").write_text("another content, another encoder")
    for name, other in (("uri", "other"), ("vision", "eyes")):
        changed = settings.model_copy(update={name: str(tmp_path / other)})
        with pytest.raises(PituneError) as error:
            changed.open(Path(changed.uri))
        line = str(error.value)
        assert "\n" not in line and line.startswith(f"backbone.projector: {settings.projector} ")
        assert f"for another {name} " in line and f"{tmp_path / other} has " in line and "run pitune bridge" in line


def test_more_tokens_than_the_encoder_has_places_for_are_one_line(tmp_path: Path, pictures: list[Picture]) -> None:
    settings = save_bridge(tmp_path)  # the encoder has 64 places, a picture takes 5
    longest = settings.model_copy(update={"max_tokens": 59})
    assert embedded(longest.open(Path(settings.uri)), [of(TEXTS[3] * 9, pictures[0])], 0).shape == (1, 32)
    with pytest.raises(PituneError, match=r"text does not embed texts of max_tokens = 60 tokens and a picture of 5"):
        settings.model_copy(update={"max_tokens": 60}).open(Path(settings.uri))


def test_a_picture_that_is_gone_is_named(bridge: BridgeBackbone, tmp_path: Path) -> None:
    lost = Picture(str(tmp_path / "lost.png"), hashlib.sha256(b"lost").hexdigest())
    with pytest.raises(PituneError, match=r"lost.png: the picture cannot be read"):
        embedded(bridge, [of("w1", lost)], 0)
