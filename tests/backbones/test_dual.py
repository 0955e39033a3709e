"""Dual encoders against the plain model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tinydual import SIDE, make_pictures, open_dual, plain_dual, save_dual
from tinymodel import save_encoder
from torch import Tensor
from transformers import BertTokenizerFast

from pitune.backbones import cache
from pitune.backbones.dual import MODELS, DualBackbone, DualSettings
from pitune.errors import PituneError
from pitune.experts import Lora, TextPrompt
from pitune.interpolation.scoring import answers
from pitune.objectives import Match, Rows
from pitune.tasks.task import Example

TEXTS = ["w1 w7 w20", "w3", "w5 w5 w40 w41 w2"]


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("dual") / request.param, request.param)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return list(make_pictures(tmp_path_factory.mktemp("pictures")).splits["test"])


def unit(found: Tensor) -> Tensor:
    return found / found.square().sum(-1, keepdim=True).sqrt()


def by_hand(examples: list[Example]) -> Tensor:
    """Bring pictures to the model's size as its processor's file says: bicubic, then (value - mean) / deviation."""
    found = []
    for example in examples:
        assert example.picture is not None
        picture = Image.open(example.picture.file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        values = torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(SIDE, SIDE, 3)
        found.append(((values / 255 - 0.5) / 0.25).permute(2, 0, 1))
    return torch.stack(found)


@torch.no_grad()
def test_pictures_and_texts_are_what_the_plain_model_says(folder: Path, examples: list[Example]) -> None:
    backbone, model = open_dual(folder), plain_dual(folder)
    pixels = by_hand(examples)
    pictures = unit(model.get_image_features(pixel_values=pixels).pooler_output)
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    fills = model.config.model_type == "siglip"
    padding: dict[str, Any] = {"padding": "max_length", "max_length": 32} if fills else {"padding": True}
    given = tokenizer(TEXTS, return_tensors="pt", **padding)
    names = ("input_ids",) if fills else ("input_ids", "attention_mask")
    texts = unit(model.get_text_features(**{name: given[name] for name in names}).pooler_output)
    for first in (None, 0, 1, 2):
        firsts = {} if first is None else {"image": first, "text": first}
        for _ in range(2):  # once computed, once kept
            seen = backbone(backbone.inputs(backbone.encode(examples), firsts))
            read = backbone(backbone.inputs(backbone.encode_texts(TEXTS), firsts))
            torch.testing.assert_close(seen, pictures, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(read, texts, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_zero_shot_is_the_models_own(folder: Path, tmp_path: Path) -> None:
    """CLIP's answers are the softmax of its own logits, and SigLIP's order is that of its own."""
    backbone, model, task = open_dual(folder), plain_dual(folder), make_pictures(tmp_path)
    scale = float(model.logit_scale.exp())
    rows = Rows(backbone, Match(scale=scale), [(task, task.splits["test"], 1.0)])
    said, scores = answers(backbone, Lora(), Match(scale=scale), [], rows)
    texts = backbone.collate(backbone.encode_texts(task.label_texts))
    given = {**texts, "pixel_values": by_hand(list(task.splits["test"]))}
    logits = model(**given).logits_per_image  # SigLIP adds a number, which changes no softmax
    assert said[0] == logits.argmax(1).tolist()
    torch.testing.assert_close(torch.tensor(scores[0]), logits.softmax(1).amax(1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_a_study_makes_of_pictures_is_kept_on_the_disk(
    folder: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, for whoever opens the same folder; another folder's, or another precision's, are others."""
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))
    settings = DualSettings(uri="tiny", max_tokens=24)
    first, again = settings.open(folder), settings.open(folder)
    found = first(first.inputs(first.encode(examples), {}))
    plain = open_dual(folder)
    torch.testing.assert_close(found, plain(plain.inputs(plain.encode(examples), {})), atol=1e-6, rtol=1e-5)
    other = settings.open(folder, "bf16")
    assert not torch.equal(found, other(other.inputs(other.encode(examples), {})))
    monkeypatch.setattr(again, "_pixels", None)  # nothing is decoded
    assert torch.equal(found, again(again.inputs(again.encode(examples), {})))


def test_a_picture_is_decoded_once_for_the_layers_above_the_trunk(
    folder: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = open_dual(folder)
    cache.CACHE.clear()
    decoded: list[object] = []
    pixels = DualBackbone._pixels
    monkeypatch.setattr(DualBackbone, "_pixels", lambda self, one: (decoded.append(one), pixels(self, one))[1])
    distinct = {example.picture for example in examples}
    for _ in range(3):
        backbone.inputs(backbone.encode(examples), {"image": 1})
    assert len(decoded) == len(distinct)
    backbone.inputs(backbone.encode(examples), {"image": 0})  # an expert in the lowest layer has nothing below it
    assert len(decoded) == len(distinct) + len(examples)


def test_what_is_no_dual_encoder_is_refused_in_one_line(tmp_path: Path) -> None:
    settings = DualSettings(uri="somewhere")
    with pytest.raises(PituneError, match=r"uri: somewhere is not a dual encoder .*found bert; pitune reads clip"):
        settings.open(save_encoder(tmp_path / "bert", "bert"))
    folder = save_dual(tmp_path / "clip", "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(PituneError, match=r"uri: somewhere is not a dual encoder") as error:
        settings.open(folder)
    assert "\n" not in str(error.value)


def test_candidates_that_experts_act_on_are_read_once_for_all_that_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expert on the texts alone leaves pictures as they are; more of them than run at once are one batch."""
    backbone, task = open_dual(save_dual(tmp_path / "clip", "clip")), make_pictures(tmp_path)
    kind, test = TextPrompt(tokens=2), task.splits["test"]
    expert = kind.start(backbone)

    def asked(examples: Sequence[Example]) -> list[object]:
        return answers(backbone, kind, Match(), [expert], Rows(backbone, Match(), [(task, examples, 1.0)]))[0][0]

    one_by_one = [asked([example])[0] for example in test]
    read: list[str] = []
    embed = DualBackbone.embed
    monkeypatch.setattr(DualBackbone, "embed", lambda self, given: (read.append(given.tower), embed(self, given))[1])
    monkeypatch.setattr(DualBackbone, "rows_at_once", 2)
    cache.CACHE.clear()
    assert asked(test) == one_by_one
    assert read.count("text") == 1 and read.count("image") > 1
