"""Unified prompts against torch's own transformer layer, and the two towers' equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plainclip
import pytest
import torch
from tinydual import make_pictures, open_dual, save_dual
from tinymodel import random_expert
from torch import nn

from pitune.backbones.dual import DualBackbone
from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Bank, UnifiedPrompt
from pitune.experts.checkpoint import from_files, to_files


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> DualBackbone:
    return open_dual(save_dual(tmp_path_factory.mktemp("clip"), "clip"))


@pytest.mark.parametrize("net", ["transformer", "mlp", "identity"])
def test_it_equals_the_equations(clip: DualBackbone, tmp_path: Path, net: Any) -> None:
    kind = UnifiedPrompt(tokens=2, width=8, net=net)
    experts = [random_expert(kind, clip, seed, size=0.3) for seed in range(2)]
    task = make_pictures(tmp_path)
    texts, pictures = clip.encode_texts(["w1", "w2 w3"]), clip.encode(task.splits["test"][:2])
    firsts = clip.firsts(list(experts[0]))
    assert firsts == {"text": 0, "image": 0}
    with Bank(kind, experts).attached(clip.model), torch.no_grad():
        read, seen = (clip(clip.inputs(rows * 2, firsts)).view(2, 2, -1) for rows in (texts, pictures))
    for index, expert in enumerate(experts):
        shared, image = (
            next(held for held in expert.values() if name in held) for name in ("vectors", "tokens.weight")
        )
        vectors = _net(shared, net)
        words = vectors[:2] @ shared["words.weight"].T + shared["words.bias"]
        tokens = vectors[2:] @ image["tokens.weight"].T + image["tokens.bias"]
        for place in range(2):
            text = plainclip.text(clip.model, list(texts[place].content), words)
            torch.testing.assert_close(read[index, place], text.detach(), atol=1e-5, rtol=1e-4)
            picture = plainclip.image(clip.model, clip._pixels(pictures[place].content), [tokens])
            torch.testing.assert_close(seen[index, place], picture.detach(), atol=1e-5, rtol=1e-4)


def _net(held: dict[str, torch.Tensor], net: str) -> torch.Tensor:
    if net == "transformer":
        return plainclip.unified(held).detach()
    if net == "identity":
        return held["vectors"]
    inner = nn.functional.layer_norm(held["vectors"], (8,), held["net.norm2"], held["net.norm2_bias"])
    inner = nn.functional.gelu(inner @ held["net.up"].T + held["net.up_bias"])
    return held["vectors"] + inner @ held["net.down"].T + held["net.down_bias"]


def test_its_net_starts_as_the_identity(clip: DualBackbone) -> None:
    start = UnifiedPrompt(tokens=2, width=8).start(clip)
    (held,) = (held for held in start.values() if "vectors" in held)
    torch.testing.assert_close(plainclip.unified(held).detach(), held["vectors"])


def test_a_file_that_lacks_a_part_of_the_net_is_refused(clip: DualBackbone) -> None:
    kind = UnifiedPrompt(tokens=2, width=8)
    expert = kind.start(clip)
    for held in expert.values():
        held.pop("net.up", None)
    files = to_files(kind, expert, "tiny")
    with pytest.raises(PituneError, match=r"has no net\.up; the file is not whole"):
        from_files(*files.values(), "here")


def test_it_needs_two_towers(clip: DualBackbone, tiny: TextBackbone) -> None:
    with pytest.raises(PituneError, match="use a dual encoder"):
        UnifiedPrompt().start(tiny)
    with pytest.raises(PituneError, match=r"expert\.towers: found text; a unified_prompt acts in both"):
        UnifiedPrompt(towers=("text",)).start(clip)
