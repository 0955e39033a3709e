"""Packed training against one expert at a time, in this process, and against PEFT's own model one after another.

    python benchmarks/packing.py

Same slices, rows, order and optimizer for all. Where only the last layers have experts, pitune has kept the output of
those below, as for few shots that come again and again; PEFT's model runs every layer at every step. Prints seconds a
step of all experts, and the ratios.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from common import OBJECTIVE, backbone, candidates, labels, peft_logits, rows, side_by_side, task
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from pitune.backbones.text import TextBackbone
from pitune.experts import Lora
from pitune.training.engine import EngineSettings
from pitune.training.loop import Member, PackTraining
from pitune.training.recipe import Recipe

EXPERTS, STEPS = 8, 6


def packs(encoder: TextBackbone, kind: Lora, batch: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return training all experts as one pack, and as packs of one."""
    source, start = task(), kind.start(encoder)
    recipe = Recipe(steps=STEPS, batch_size=batch, learning_rate=1e-3)
    validation = rows(encoder, source, "movie@1#0", "validation")
    members = [
        Member(f"movie@64#{s}", start, rows(encoder, source, f"movie@64#{s}"), validation) for s in range(EXPERTS)
    ]

    def together() -> None:
        PackTraining(encoder, kind, OBJECTIVE, members, recipe, EngineSettings(zero_stage=1)).run()

    def alone() -> None:
        for member in members:
            PackTraining(encoder, kind, OBJECTIVE, [member], recipe, EngineSettings(zero_stage=1)).run()

    return together, alone


def peft(encoder: TextBackbone, kind: Lora, batch: int) -> Callable[[], None]:
    """Return training PEFT's model on each slice in turn, as one would by hand."""
    source = task()
    texts = candidates(encoder, source)
    model = get_peft_model(
        AutoModel.from_pretrained(encoder.model.config._name_or_path).eval(),
        LoraConfig(r=kind.rank, lora_alpha=kind.alpha, target_modules=sorted(kind.start(encoder))),
    )
    model.to(encoder.device)
    slices = [rows(encoder, source, f"movie@64#{seed}") for seed in range(EXPERTS)]
    recipe = Recipe(steps=STEPS, batch_size=batch)

    def one_after_another() -> None:
        for seed, slice_rows in enumerate(slices):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
            for chosen in slice_rows.order(f"movie@64#{seed}", recipe.steps, batch).tolist():
                taken = slice_rows.take(chosen)
                logits = peft_logits(model, encoder, taken, texts)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, labels(encoder, taken)).backward()
                optimizer.step()

    return one_after_another


def main() -> None:
    """Measure at 8, 2 and 1 rows per expert, with LoRA in all layers and in the last three only."""
    warnings.filterwarnings("ignore")
    encoder = backbone()
    print(f"{EXPERTS} experts, {STEPS} steps each; median of 3 rounds; ratio = how much faster the pack is")
    for layers, where in ((None, "all layers"), (3, "last 3 layers")):
        kind = Lora(layers=layers)
        for batch in (8, 2, 1):
            together, alone = packs(encoder, kind, batch)
            found = side_by_side({"pack": together, "alone": alone, "peft": peft(encoder, kind, batch)}, repeats=3)
            ratios = ", ".join(f"{name} {found[name] / found['pack']:.2f}x" for name in ("alone", "peft"))
            step = found["pack"] / STEPS * 1000
            print(f"LoRA in {where}, {batch} rows per expert: pack {step:.0f} ms a step; against {ratios}", flush=True)


if __name__ == "__main__":
    main()
