"""Making a dual encoder: it learns what can be learnt, goes on where it was, and is what its two models say by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tinybridge import PROCESSOR, SIDE, save_vision
from tinydual import save_dual
from tinymodel import save_encoder
from tinypictures import colours, stopping
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Dinov2Config, Dinov2Model

from pitune.assets import content_hash, fetch
from pitune.backbones.dual import DualBackbone, DualSettings
from pitune.backbones.pairing import paired
from pitune.config import AlignConfig, load_align
from pitune.errors import PituneError
from pitune.store import Store
from pitune.tasks.catalogue import load_task
from pitune.tasks.task import Example
from pitune.training.align import DUAL, MODEL, make_dual
from pitune.training.contrastive import CHECKPOINT

TEXTS = ["w1 w7 w20", "w3", "w5 w5 w40 w41 w2"]
LAYERS, WIDTH = 3, 32


def save_dino(folder: Path) -> Path:
    """Write a random DINOv2 that was made for pictures twice as wide as its processor makes them."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(image_size=2 * SIDE, patch_size=4, **shape))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"resample": 3}))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of colours, and the YAML of a dual encoder of a tiny DINOv2 and a tiny BERT."""
    folder = tmp_path_factory.mktemp("align")
    settings = {
        "to": str(folder / "made"),
        "vision": str(save_dino(folder / "vision")),
        "text": str(save_encoder(folder / "text", "bert")),
        "tasks": {"colours": colours(folder / "pictures", SIDE)},
        "training": {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2},
    }
    (folder / "align.yaml").write_text(yaml.safe_dump(settings))
    return folder / "align.yaml"


@pytest.fixture(autouse=True)
def _own_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))


def make(settings: AlignConfig, to: Path, stop_after: int | None = None) -> dict[str, Any]:
    """Make the dual encoder; stop when so many epochs are over."""
    tasks = [load_task(name, source) for name, source in settings.tasks.items()]
    return dict(make_dual(Store(to), settings.vision, settings.text, tasks, settings.training, stopping(stop_after)))


def test_it_learns_what_can_be_learnt(config: Path, tmp_path: Path) -> None:
    made = make(load_align(config), tmp_path)
    assert len(made["losses"]) == 8 and min(made["losses"]) < np.log(3) / 2
    found = made["retrieval"]["colours"]
    assert found["captions"] == 3 and found["test"]["recall@1"] > 0.9 and found["test"]["recall@5"] == 1.0


def test_interrupted_it_goes_on_to_the_same_model(config: Path, tmp_path: Path) -> None:
    settings = load_align(config)
    through = make(settings, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        make(settings, tmp_path / "stopped", stop_after=3)
    assert Store(tmp_path / "stopped").manifest(CHECKPOINT) is not None
    assert Store(tmp_path / "stopped").manifest(DUAL) is None
    stopped = make(settings, tmp_path / "stopped")
    assert stopped["losses"] == through["losses"] and stopped["retrieval"] == through["retrieval"]
    ours, theirs = (tmp_path / name / DUAL / MODEL for name in ("through", "stopped"))
    assert content_hash(ours) == content_hash(theirs)  # manifests, which have times, lie outside
    made = make(settings, tmp_path / "stopped", stop_after=0)  # nothing is left to be told of
    assert made["written"] == stopped["written"]


# --- what comes out ------------------------------------------------------------------------------------------------


def unit(found: Tensor) -> Tensor:
    return found / found.square().sum(-1, keepdim=True).sqrt()


def by_hand(picture: Path) -> Tensor:
    """Bring a picture to the model's size as its processor's file says: bicubic, then (value - mean) / deviation."""
    with Image.open(picture) as image:
        small = np.array(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    return (torch.from_numpy(small).permute(2, 0, 1) / 255 - 0.5) / 0.25


def files_of(examples: Sequence[Example]) -> list[Path]:
    return [Path(example.picture.file) for example in examples if example.picture]


def class_tokens(vision: Path, pictures: Sequence[Path]) -> Tensor:
    """Return the class token's last state, one picture at a time."""
    model = AutoModel.from_pretrained(vision).eval()
    return torch.cat([model(pixel_values=by_hand(one)[None]).last_hidden_state[:, 0] for one in pictures])


def averaged(text: Path, texts: Sequence[str]) -> Tensor:
    """Return the mean of the states of each text's tokens, one text at a time, normalised over its numbers."""
    model, tokenizer = AutoModel.from_pretrained(text).eval(), AutoTokenizer.from_pretrained(text)
    found = []
    for one in texts:
        mean = model(input_ids=torch.tensor([tokenizer(one)["input_ids"]])).last_hidden_state[0].mean(0)
        found.append((mean - mean.mean()) / (mean - mean.mean()).square().mean().sqrt())
    return torch.stack(found)


def test_it_is_what_its_two_models_say(config: Path, tmp_path: Path) -> None:
    """As pitune and transformers open it: the class token or the mean of states, less training's mean, and a matrix."""
    settings = load_align(config)
    make(settings, tmp_path)
    with torch.no_grad():
        check(settings, tmp_path / DUAL / MODEL)


def check(settings: AlignConfig, folder: Path) -> None:
    """Compare the folder with the two models that it was made of."""
    weights = load_file(folder / "model.safetensors")
    task = load_task("colours", settings.tasks["colours"])
    examples, pictures = task.splits["test"], files_of(task.splits["test"])
    vision, text = Path(settings.vision), Path(settings.text)
    classes = class_tokens(vision, pictures) - class_tokens(vision, files_of(task.splits["train"])).mean(0)
    means = averaged(text, TEXTS) - averaged(text, task.label_texts).mean(0)
    seen = unit(classes @ weights["visual_projection.weight"].T)
    read = unit(means @ weights["text_projection.weight"].T)
    assert seen.shape[1] == read.shape[1] == WIDTH

    backbone = DualSettings(uri=str(folder)).open(folder)
    assert isinstance(backbone, DualBackbone) and [tower.depth for tower in backbone.towers.values()] == [2, LAYERS + 1]
    for first in (None, 0, 1):
        firsts = {} if first is None else {"image": first, "text": first}
        found = backbone(backbone.inputs(backbone.encode(examples), firsts))
        torch.testing.assert_close(found, seen, atol=2e-3, rtol=0)
        found = backbone(backbone.inputs(backbone.encode_texts(TEXTS), firsts))
        torch.testing.assert_close(found, read, atol=2e-3, rtol=0)

    model, tokenizer, processor = (
        kind.from_pretrained(folder) for kind in (AutoModel, AutoTokenizer, AutoImageProcessor)
    )
    pixels = processor(images=[Image.open(one).convert("RGB") for one in pictures], return_tensors="pt")
    logits = model.eval()(**pixels, **tokenizer(TEXTS, padding=True, return_tensors="pt")).logits_per_image
    torch.testing.assert_close(logits, 20 * seen @ read.T, atol=5e-2, rtol=0)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_text_is_the_mean_of_its_tokens_states_to_begin_with(family: str, config: Path, tmp_path: Path) -> None:
    text, vision = save_encoder(tmp_path / "text", family), load_align(config).vision
    pair = paired(fetch(vision), fetch(str(text)), scale=20.0)
    given = pair.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = pair.model.eval().get_text_features(given["input_ids"], given["attention_mask"]).pooler_output
        torch.testing.assert_close(unit(found), unit(averaged(text, TEXTS)), atol=2e-3, rtol=0)


def test_the_poolers_of_a_vit_and_a_bert_hand_on_what_they_are_given(config: Path, tmp_path: Path) -> None:
    """A tiny ViT has a class token and a pooler that nobody has trained."""
    settings = load_align(config, [f"vision={save_vision(tmp_path / 'vit')}", "training.epochs=1"])
    make(settings, tmp_path)
    model: Any = AutoModel.from_pretrained(tmp_path / DUAL / MODEL).eval()
    with torch.no_grad():
        found = model.vision_model(pixel_values=torch.randn(3, 3, SIDE, SIDE))
        read = model.text_model(input_ids=torch.tensor([[1, 9, 2], [1, 30, 2]]))
    for output in (found, read):
        given, pooled = output.last_hidden_state[:, 0], output.pooler_output
        torch.testing.assert_close(unit(pooled[1:] - pooled[0]), unit(given[1:] - given[0]), atol=2e-3, rtol=0)
    assert str(tmp_path) not in (tmp_path / DUAL / MODEL / "config.json").read_text()


# --- what is refused -----------------------------------------------------------------------------------------------


def test_what_cannot_be_paired_is_refused_in_one_line(config: Path, tmp_path: Path) -> None:
    other = load_align(config, [f"text={save_encoder(tmp_path / 'mpnet', 'mpnet')}"])
    with pytest.raises(PituneError, match=r"text: .* can be paired \(found model_type mpnet; right would be bert"):
        make(other, tmp_path / "made")
    other = load_align(config, [f"vision={save_encoder(tmp_path / 'bert', 'bert')}"])
    with pytest.raises(PituneError, match="is no vision encoder that pitune reads") as error:
        make(other, tmp_path / "made")
    assert "\n" not in str(error.value)
    other = load_align(config, [f"vision={save_dual(tmp_path / 'clip', 'clip')}"])
    with pytest.raises(PituneError, match=r"make no dual encoder \(clip_vision_model pools in a way of its own"):
        make(other, tmp_path / "made")
