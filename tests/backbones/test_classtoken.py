"""The class token alone against the whole last layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tinydual import make_pictures, open_dual, save_dual
from tinymodel import random_expert

from pitune.backbones import Precision
from pitune.backbones.classtoken import CLASS_TOKEN
from pitune.backbones.dual import IMAGE, DualBackbone, DualSettings
from pitune.experts import Bank, ExpertKind, Lora, UnifiedPrompt, VisualPrompt

LAST = 2
KINDS = (VisualPrompt(tokens=3, layers=1), UnifiedPrompt(tokens=2, width=8, layers=1))


def opened(folder: Path, family: str, precision: Precision = "fp32") -> DualBackbone:
    return open_dual(save_dual(folder / family, family), precision)


def embedded(backbone: DualBackbone, bank: Bank, folder: Path, first: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Embed pictures with experts that act, the trunk too, and return the gradients as well."""
    rows = backbone.encode(make_pictures(folder).splits["test"][:3]) * bank.size
    with bank.attached(backbone.model):
        found = backbone(backbone.inputs(rows, {IMAGE: first}))
    tensors = [tensor for _, site in bank.named_sites() for tensor in site.tensors().values()]
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    return found, [
        grad for grad in torch.autograd.grad((found * weights).sum(), tensors, allow_unused=True) if grad is not None
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("family", ["clip", "vision-text-dual-encoder"])
def test_it_equals_the_whole_layer(tmp_path: Path, family: str, kind: ExpertKind) -> None:
    backbone = opened(tmp_path, family)
    experts = [random_expert(kind, backbone, seed, size=0.5) for seed in range(2)]
    assert backbone.firsts(list(experts[0]))[IMAGE] == CLASS_TOKEN
    bank = Bank(kind, experts)
    (alone, its), (whole, theirs) = (embedded(backbone, bank, tmp_path, first) for first in (CLASS_TOKEN, LAST))
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=1e-5)
    assert its
    torch.testing.assert_close(its, theirs, atol=1e-5, rtol=1e-4)


def test_in_half_precision_too(tmp_path: Path) -> None:
    backbone = opened(tmp_path, "clip", "bf16")
    bank = Bank(KINDS[0], [random_expert(KINDS[0], backbone, seed, size=0.5) for seed in range(2)])
    (alone, _), (whole, _) = (embedded(backbone, bank, tmp_path, first) for first in (CLASS_TOKEN, LAST))
    torch.testing.assert_close(alone, whole, atol=0.02, rtol=0)


def test_only_towers_that_pool_it_alone_and_experts_beside_the_last_layer(tmp_path: Path) -> None:
    siglip, clip = opened(tmp_path, "siglip"), opened(tmp_path, "clip")
    assert siglip.firsts(list(KINDS[0].start(siglip))) == {IMAGE: LAST}  # its pooling reads all tokens
    assert clip.firsts(list(Lora(layers=1).start(clip))) == {IMAGE: LAST}  # it changes keys
    assert clip.firsts(list(VisualPrompt(layers=2).start(clip))) == {IMAGE: LAST - 1}


def test_what_it_needs_of_pictures_is_kept_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITUNE_CACHE", str(tmp_path / "cache"))
    folder, examples = save_dual(tmp_path / "clip", "clip"), make_pictures(tmp_path).splits["test"]
    settings = DualSettings(uri="tiny", max_tokens=24)
    first, again = settings.open(folder), settings.open(folder)
    kept = first.inputs(first.encode(examples), {IMAGE: CLASS_TOKEN}).hidden
    monkeypatch.setattr(again, "_pixels", None)  # nothing is decoded
    found = again.inputs(again.encode(examples), {IMAGE: CLASS_TOKEN}).hidden
    assert kept is not None and found is not None and torch.equal(kept, found)
