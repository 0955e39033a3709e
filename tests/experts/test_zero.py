"""Banks whose parameters are shared out by ZeRO-3: what is bound asks for whole tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tinymodel import EVERY_KIND, MATCH, flat, make_rows, make_task, open_encoder, random_expert
from torch import Tensor, nn

from pitune.backbones import Backbone
from pitune.experts import Bank, Expert, ExpertKind, Prefix
from pitune.training import engine
from pitune.training.engine import Engine, EngineSettings


class Model(nn.Module):
    def __init__(self, backbone: Backbone, bank: Bank) -> None:
        super().__init__()
        self.backbone, self.bank = backbone, bank

    def forward(self, batch: Any) -> Tensor:
        return MATCH.losses(self.backbone, self.bank, batch).mean(1)


def train(folder: Path, kind: ExpertKind, stage: int) -> tuple[Tensor, Expert]:
    """Train two experts for two steps; return their last losses and the second expert."""
    backbone = open_encoder(folder)
    bank = Bank(kind, [random_expert(kind, backbone, seed) for seed in range(2)])
    rows, firsts = make_rows(backbone, make_task("a", 3, 6)), backbone.firsts(list(kind.start(backbone)))
    with Engine(Model(backbone, bank), EngineSettings(zero_stage=stage), 2) as running:  # type: ignore[arg-type]
        running.set_learning_rate(1e-2)
        for step in range(2):
            if stage == 3:
                assert not any(parameter.numel() for parameter in bank.parameters()), f"before step {step}"
            losses = running(MATCH.collate(backbone, firsts, [rows.take([0, 1]), rows.take([2, 3])]))
            running.backward(losses)
            running.step()
        whole = {name.removeprefix("bank."): tensor for name, tensor in running.gathered().items()}
        return losses.detach(), bank.expert(1, whole)


@pytest.mark.parametrize("kind", [*EVERY_KIND, Prefix(tokens=2)], ids=lambda kind: f"{kind.kind}-{kind.layers}")
def test_zero_3_trains_the_same(kind: ExpertKind, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = engine._deepspeed_config

    def sharing_all(settings: EngineSettings, trainable: int) -> dict[str, Any]:
        config = plain(settings, trainable)
        # Else small ones stay whole, and others until they may be used again.
        names = ("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance")
        config["zero_optimization"] |= dict.fromkeys(names, 0)
        return config

    monkeypatch.setattr(engine, "_deepspeed_config", sharing_all)
    (expected, single), (found, shared) = (train(tiny_folder, kind, stage) for stage in (0, 3))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flat(shared), flat(single), atol=1e-4, rtol=1e-4)
