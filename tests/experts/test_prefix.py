"""Prefixes against PEFT's own forward, and their files, in both directions."""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tinymodel import embed, flat, open_encoder, random_expert, save_encoder
from torch import Tensor, nn

import pitune
from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Bank, Expert, Prefix
from pitune.experts.checkpoint import WEIGHTS, read, to_files

TEXTS = ["w1 w2 w3 w4", "w30 w7"]
WHOLE = Prefix(tokens=3)


def write(folder: Path, kind: Prefix, expert: Expert) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in to_files(kind, expert, "tiny").items():
        (folder / name).write_bytes(content)
    return folder


def states(model: nn.Module, encoder: TextBackbone) -> Tensor:
    """Return the states of a padded batch, where they are no padding: PEFT wants no position or token types."""
    with torch.no_grad():
        inputs = encoder.collate(encoder.encode_texts(TEXTS))
        found = model(**inputs).last_hidden_state
        return found[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_peft_computes_the_same_from_our_files(family: str, tmp_path: Path) -> None:
    encoder = open_encoder(save_encoder(tmp_path / "model", family))
    expert = random_expert(WHOLE, encoder, 0, size=1.0)
    folder = write(tmp_path / "expert", WHOLE, expert)
    with Bank(WHOLE, [expert]).attached(encoder.model):
        ours = states(encoder.model, encoder)
    bare = states(encoder.model, encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = peft.PeftModel.from_pretrained(open_encoder(tmp_path / "model").model, str(folder)).eval()
    torch.testing.assert_close(states(model, encoder), ours, atol=1e-6, rtol=1e-5)
    assert (ours - bare).abs().max() > 1e-2
    loaded = pitune.load(open_encoder(tmp_path / "model").model, folder)
    torch.testing.assert_close(states(loaded, encoder), ours, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("projection", [False, True])
def test_what_peft_writes_we_read(projection: bool, tiny: TextBackbone, tiny_folder: Path, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=5, prefix_projection=projection, encoder_hidden_size=8
    )
    model = peft.get_peft_model(open_encoder(tiny_folder).model, config).eval()
    model.save_pretrained(str(tmp_path))
    kind, expert = read(tmp_path)
    assert kind == Prefix(tokens=5) and len(expert) == 3
    loaded = pitune.load(open_encoder(tiny_folder).model, tmp_path)
    torch.testing.assert_close(states(loaded, tiny), states(model, tiny), atol=1e-6, rtol=1e-5)
    placed = kind.placed(expert, tiny.model)
    assert list(placed) == [site.path for site in kind.sites(tiny)]
    shallow = type(tiny.model)(tiny.model.config.__class__(**{**tiny.model.config.to_dict(), "num_hidden_layers": 2}))
    with pytest.raises(PituneError, match=r"made for another backbone, this model has no stack of 3 attentions$"):
        pitune.load(shallow, tmp_path)


def test_files_are_pefts_where_all_layers_have_a_prefix(tiny: TextBackbone, tmp_path: Path) -> None:
    for kind, tensors in ((WHOLE, 1), (Prefix(tokens=3, layers=3), 1), (Prefix(tokens=3, layers=2), 4)):
        expert = random_expert(kind, tiny, 0)
        folder = write(tmp_path / "expert", kind, expert)
        assert len(load_file(folder / WEIGHTS)) == tensors
        again, found = read(folder)
        assert again == Prefix(tokens=3)
        assert found.keys() == expert.keys() and torch.equal(flat(found), flat(expert))
        assert to_files(kind, expert, "tiny") == to_files(again, found, "tiny")  # byte by byte


def test_files_that_do_not_go_together_are_one_line(tiny: TextBackbone, tmp_path: Path) -> None:
    folder = write(tmp_path / "expert", WHOLE, random_expert(WHOLE, tiny, 0))
    held = load_file(folder / WEIGHTS)["prompt_embeddings"]
    for tensors, says in (
        (
            {"prompt_embeddings": held[:2].clone()},
            r"prompt_embeddings is \(2, 192\), its configuration says \(3, 192\)$",
        ),
        ({"other": held}, r"has no tensor prompt_embeddings alone"),
    ):
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(PituneError, match=says) as caught:
            read(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_prefix_in_some_layers_leaves_the_positions_alone(tiny: TextBackbone) -> None:
    kind = Prefix(tokens=3, layers=2)
    expert = kind.start(tiny)
    with Bank(kind, [expert]).attached(tiny.model):
        assert not any(module._forward_pre_hooks for module in tiny.model.embeddings.modules())
    with Bank(WHOLE, [WHOLE.start(tiny)]).attached(tiny.model):
        assert tiny.model.embeddings._forward_pre_hooks
    assert not tiny.model.embeddings._forward_pre_hooks


def test_no_room_for_a_prefix_is_one_line(tiny: TextBackbone) -> None:
    kind = Prefix(tokens=60)
    with (
        Bank(kind, [kind.start(tiny)]).attached(tiny.model),
        pytest.raises(
            PituneError, match=r"^expert\.tokens: 60 and 6 of a text are more than the backbone's 64 positions$"
        ),
    ):
        embed(tiny, [TEXTS[0]])
