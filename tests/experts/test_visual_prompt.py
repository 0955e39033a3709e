"""Visual prompts against VPT's equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plainclip
import pytest
import torch
from tinydual import make_pictures, open_dual, save_dual
from tinymodel import random_expert

from pitune.backbones.dual import DualBackbone
from pitune.experts import Bank, VisualPrompt


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> DualBackbone:
    return open_dual(save_dual(tmp_path_factory.mktemp("clip"), "clip"))


@pytest.mark.parametrize("layers", [None, 2, 1])
@pytest.mark.parametrize("projection", [None, 6])
@pytest.mark.parametrize("deep", [False, True])
def test_it_equals_vpt(clip: DualBackbone, tmp_path: Path, layers: Any, projection: Any, deep: bool) -> None:
    kind = VisualPrompt(tokens=3, deep=deep, projection=projection, layers=layers)
    experts = [random_expert(kind, clip, seed, size=0.5) for seed in range(2)]
    assert len(experts[0]) == ((layers or 3) if deep else 1)
    pictures = [example.picture for example in make_pictures(tmp_path).splits["test"][:2]]
    rows = clip.encode(make_pictures(tmp_path).splits["test"][:2])
    with Bank(kind, experts).attached(clip.model), torch.no_grad():
        found = clip(clip.inputs(rows * 2, clip.firsts(list(experts[0])))).view(2, 2, -1)
    for expert, mine in zip(experts, found, strict=True):
        prompts = [
            held["prompt"]
            if projection is None
            else held["prompt"] @ held["projection.weight"].T + held["projection.bias"]
            for _, held in sorted(expert.items())
        ]
        for picture, vector in zip(pictures, mine, strict=True):
            expected = plainclip.image(clip.model, clip._pixels(picture), prompts, 3 - (layers or 3))
            torch.testing.assert_close(vector, expected.detach(), atol=1e-5, rtol=1e-4)


def test_the_texts_tower_never_meets_them(clip: DualBackbone) -> None:
    """So that class features are computed once."""
    start = VisualPrompt(tokens=3).start(clip)
    assert clip.firsts(list(start)) == {"image": 0}
