"""Experts as files: what PEFT makes of ours, what we make of PEFT's, and files that are not right."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tinymodel import (
    EVERY_KIND,
    KINDS,
    embed,
    flat,
    open_encoder,
    plain_embedding,
    random_expert,
    save_encoder,
    token_ids,
)
from torch import Tensor, nn

import pitune
from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Adapter, Bank, BitFit, Expert, ExpertKind, Lora, Prefix
from pitune.experts.checkpoint import CONFIG, WEIGHTS, read, to_files
from pitune.interpolation.mixture import merge

TEXTS = ["w1 w2 w3 w4", "w30 w7"]
LORA, ADAPTER = KINDS


def write(folder: Path, kind: ExpertKind, expert: Expert) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in to_files(kind, expert, "tiny").items():
        (folder / name).write_bytes(content)
    return folder


def with_bank(encoder: TextBackbone, kind: ExpertKind, expert: Expert) -> Tensor:
    with torch.no_grad(), Bank(kind, [expert]).attached(encoder.model):
        return embed(encoder, TEXTS)


def plain(model: nn.Module, encoder: TextBackbone) -> Tensor:
    with torch.no_grad():
        return torch.stack([plain_embedding(model, ids) for ids in token_ids(encoder, TEXTS)])


@pytest.mark.parametrize("merged", [False, True], ids=["one", "merged"])
def test_plain_peft_loads_a_lora(tiny: TextBackbone, tiny_folder: Path, tmp_path: Path, merged: bool) -> None:
    expert = random_expert(LORA, tiny, 0)
    if merged:
        expert = merge(tiny, LORA, [random_expert(LORA, tiny, seed) for seed in range(3)], [0.5, 0.2, 0.3])
        assert next(iter(expert.values()))["lora_A.weight"].shape[0] == 6
    folder = write(tmp_path / "expert", LORA, expert)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys that are missing
        model = peft.PeftModel.from_pretrained(open_encoder(tiny_folder).model, str(folder)).eval()
    torch.testing.assert_close(plain(model, tiny), with_bank(tiny, LORA, expert), atol=1e-6, rtol=1e-5)
    assert (plain(model, tiny) - embed(tiny, TEXTS)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_load_attaches_an_expert_of_any_kind(
    kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path, tmp_path: Path
) -> None:
    expert = random_expert(kind, tiny, 0)
    folder = write(tmp_path / "expert", kind, expert)
    model = open_encoder(tiny_folder).model
    assert pitune.load(model, folder) is model
    torch.testing.assert_close(plain(model, tiny), with_bank(tiny, kind, expert), atol=1e-6, rtol=1e-5)
    with pytest.raises(PituneError, match="has an expert already"):
        pitune.load(model, folder)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: kind.kind)
def test_what_is_written_is_read(kind: ExpertKind, tiny: TextBackbone, tmp_path: Path) -> None:
    expert = random_expert(kind, tiny, 0)
    again, found = read(write(tmp_path / "expert", kind, expert))
    assert found.keys() == expert.keys()
    assert torch.equal(flat(found), flat(expert))
    assert with_bank(tiny, again, found).equal(with_bank(tiny, kind, expert))


def test_an_expert_that_peft_trained_is_read(tiny: TextBackbone, tiny_folder: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["query", "key"], init_lora_weights=False)
    model = peft.get_peft_model(open_encoder(tiny_folder).model, config).eval()
    model.save_pretrained(str(tmp_path))
    kind, expert = read(tmp_path)
    assert len(expert) == 6
    torch.testing.assert_close(with_bank(tiny, kind, expert), plain(model, tiny), atol=1e-6, rtol=1e-5)
    loaded = pitune.load(open_encoder(tiny_folder).model, tmp_path)
    torch.testing.assert_close(plain(loaded, tiny), plain(model, tiny), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("option", ["use_rslora", "use_dora"])
def test_variants_of_lora_are_refused(option: str, tiny_folder: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["query"], **{option: True})
    peft.get_peft_model(open_encoder(tiny_folder).model, config).save_pretrained(str(tmp_path))
    with pytest.raises(PituneError, match=rf"adapter_config\.json: {option} is true; pitune reads plain LoRA"):
        read(tmp_path)


def change(folder: Path, **settings: object) -> None:
    config = {**json.loads((folder / CONFIG).read_text()), **settings}
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def damage(folder: Path, what: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    first = sorted(tensors)[0]
    if what == "cut weights":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-50])
    elif what == "no weights":
        (folder / WEIGHTS).unlink()
    elif what == "bad json":
        (folder / CONFIG).write_text("{")
    elif what == "json list":
        (folder / CONFIG).write_text("[1]")
    elif what == "unknown type":
        change(folder, peft_type="IA3")
    elif what == "no rank":
        change(folder, r="gone")
    elif what == "bad rank":
        change(folder, r=-1)
    elif what == "stray tensor":
        save_file({**tensors, "classifier.weight": torch.ones(1)}, folder / WEIGHTS)
    elif what == "lost tensor":
        save_file({name: tensor for name, tensor in tensors.items() if name != first}, folder / WEIGHTS)
    elif what == "nothing":
        save_file({}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cut weights", "cannot be read as an expert"),
        ("no weights", r"is not an expert's folder \(No such file or directory: .*adapter_model"),
        ("bad json", "cannot be read as an expert"),
        ("json list", "cannot be read as an expert"),
        (
            "unknown type",
            r"adapter_config\.json: peft_type is 'IA3'; pitune reads LORA, BOTTLENECK, (\w+, )+WHOLE$",
        ),
        ("no rank", r"adapter_config\.json: r is missing$"),
        ("bad rank", r"adapter_config\.json: found -1; "),
        ("stray tensor", r"tensor classifier\.weight belongs to no lora expert$"),
        ("lost tensor", r"has no lora_A\.weight; the file is not whole$"),
        ("nothing", "holds no tensor"),
    ],
)
def test_damaged_files_are_one_line(what: str, says: str, tiny: TextBackbone, tmp_path: Path) -> None:
    folder = write(tmp_path / "expert", LORA, random_expert(LORA, tiny, 0))
    damage(folder, what)
    with pytest.raises(PituneError, match=says) as caught:
        read(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("kind", [Lora(rank=2), Adapter(width=2), Prefix(), BitFit()], ids=lambda kind: kind.kind)
def test_another_backbone_is_one_line(kind: ExpertKind, tiny: TextBackbone, tmp_path: Path) -> None:
    folder = write(tmp_path / "expert", kind, random_expert(kind, tiny, 0))
    (tmp_path / "other").mkdir()
    other = open_encoder(save_encoder(tmp_path / "other", "distilbert")).model
    with pytest.raises(PituneError, match=r"made for another backbone, this model has no module encoder\S+ that"):
        pitune.load(other, folder)
    wide = type(tiny.model)(
        tiny.model.config.__class__(**{**tiny.model.config.to_dict(), "hidden_size": 16, "num_hidden_layers": 3})
    )
    with pytest.raises(
        PituneError, match=r"made for another backbone, .* has \S+ \(.*(32|16).*\), this model needs \(.*(16|8)"
    ):
        pitune.load(wide, folder)
    assert not hasattr(other, "expert") and not any(module._forward_hooks for module in wide.modules())
