"""Banks whose parameters are shared out by ZeRO-3: what is bound asks for whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tinydual import make_pictures, open_dual, save_dual, with_pictures
from tinymodel import EVERY_KIND, MATCH, flat, make_task, open_encoder, random_expert
from torch import Tensor, nn

from pitune.backbones import Backbone
from pitune.experts import Bank, ConditionalPrompt, Expert, ExpertKind, Prefix, TextPrompt, UnifiedPrompt, VisualPrompt
from pitune.objectives import Rows
from pitune.tasks.task import Task
from pitune.training import engine
from pitune.training.engine import Engine, EngineSettings


class Model(nn.Module):
    def __init__(self, backbone: Backbone, bank: Bank) -> None:
        super().__init__()
        self.backbone, self.bank = backbone, bank

    def forward(self, batch: Any) -> Tensor:
        return MATCH.losses(self.backbone, self.bank, batch).mean(1)


def train(backbone: Backbone, tasks: Sequence[Task], kind: ExpertKind, stage: int) -> tuple[Tensor, Expert]:
    """Train an expert on each of two tasks for two steps; return their last losses and the second expert."""
    bank = Bank(kind, [random_expert(kind, backbone, seed) for seed in range(2)])
    rows = [Rows(backbone, MATCH, [(task, task.splits["train"], 1.0)]) for task in tasks]
    firsts = backbone.firsts(list(kind.start(backbone)))
    with Engine(Model(backbone, bank), EngineSettings(zero_stage=stage), 2) as running:  # type: ignore[arg-type]
        running.set_learning_rate(1e-2)
        for step in range(2):
            if stage == 3:
                assert not any(parameter.numel() for parameter in bank.parameters()), f"before step {step}"
            losses = running(MATCH.collate(backbone, firsts, [rows[0].take([0, 1]), rows[1].take([2, 3])]))
            running.backward(losses)
            running.step()
        whole = {name.removeprefix("bank."): tensor for name, tensor in running.gathered().items()}
        return losses.detach(), bank.expert(1, whole)


@pytest.fixture
def all_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share small parameters, too, and free each at once; else small ones stay whole, and others for a while."""
    plain = engine._deepspeed_config

    def sharing_all(settings: EngineSettings, trainable: int) -> dict[str, Any]:
        config = plain(settings, trainable)
        names = ("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance")
        config["zero_optimization"] |= dict.fromkeys(names, 0)
        return config

    monkeypatch.setattr(engine, "_deepspeed_config", sharing_all)


def check(found: tuple[Tensor, Expert], expected: tuple[Tensor, Expert]) -> None:
    """Losses and experts are the same."""
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flat(found[1]), flat(expected[1]), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("all_shared")
@pytest.mark.parametrize("kind", [*EVERY_KIND, Prefix(tokens=2)], ids=lambda kind: f"{kind.kind}-{kind.layers}")
def test_zero_3_trains_the_same(kind: ExpertKind, tiny_folder: Path) -> None:
    tasks = [make_task("a", 3, 6)] * 2
    check(train(open_encoder(tiny_folder), tasks, kind, 3), train(open_encoder(tiny_folder), tasks, kind, 0))


PROMPTS = (TextPrompt(tokens=2), ConditionalPrompt(tokens=2), VisualPrompt(tokens=2), UnifiedPrompt(tokens=2))


@pytest.mark.usefixtures("all_shared")
@pytest.mark.parametrize("kind", PROMPTS, ids=lambda kind: kind.kind)
def test_zero_3_trains_prompts_the_same(kind: ExpertKind, tmp_path: Path) -> None:
    """On a dual encoder, where a kind may act in both towers, or once for each picture.

    Where no expert acts in CLIP's texts it looks how long its table of places is before it asks for it. Nothing shares
    so small a table but this test; a BERT does not look.
    """
    folder = save_dual(tmp_path / "dual", "dual" if kind.kind == "visual_prompt" else "clip")
    tasks = [make_pictures(tmp_path), with_pictures(make_task("more", 5, 6), tmp_path)]
    check(train(open_dual(folder), tasks, kind, 3), train(open_dual(folder), tasks, kind, 0))
