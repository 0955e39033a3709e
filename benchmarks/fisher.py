"""Exact Fisher through the expert axis, against a batch-of-one loop and against one plain backward pass.

python benchmarks/fisher.py
"""

from __future__ import annotations

import torch
from common import backbone, rows, side_by_side, task, trained_looking

from pitune.backbones.text import TextBackbone
from pitune.embedding.fisher import fisher
from pitune.experts import Bank, Expert, Lora
from pitune.training.examples import Rows

BATCH = 32


def loop(kind: Lora, expert: Expert, examples: Rows, batch: int, square: bool) -> torch.Tensor:
    """Pass over the rows in batches with one shared expert; square and sum the gradients, or only take them."""
    encoder = examples.backbone
    bank = Bank(kind, [expert]).to(encoder.device)
    total = torch.zeros(sum(parameter.numel() for parameter in bank.parameters()), device=encoder.device)
    order = sorted(range(len(examples)), key=lambda row: len(examples.ids[row]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        with bank.attached(encoder.model):
            logits = encoder.settings.scale * encoder(examples.inputs(chosen), examples.first) @ examples.candidates.T
        loss = torch.nn.functional.cross_entropy(logits, examples.labels[chosen].to(logits.device), reduction="sum")
        gradients = torch.autograd.grad(loss, list(bank.parameters()))
        if square:
            total += torch.cat([gradient.flatten().square() for gradient in gradients])
    return total / len(examples)


def measure(encoder: TextBackbone, kind: Lora, where: str) -> None:
    """Print the ratios and the largest difference from the loop."""
    examples, expert = rows(encoder, kind, task(), "movie@64#0"), trained_looking(kind, encoder, 0)
    examples.inputs(range(len(examples)))  # the trunk's outputs are kept: all three ways find them
    found = side_by_side(
        {
            "exact": lambda: fisher(kind, expert, examples, batch=BATCH),
            "loop": lambda: loop(kind, expert, examples, 1, square=True),
            "plain": lambda: loop(kind, expert, examples, BATCH, square=False),
        }
    )
    exact = fisher(kind, expert, examples, batch=BATCH)
    flat = torch.cat([exact[site][key].flatten() for site in exact for key in exact[site]])
    by_loop = loop(kind, expert, examples, 1, square=True).cpu()
    error = float((flat - by_loop).norm() / by_loop.norm())
    print(
        f"LoRA in {where}, {len(examples)} rows: exact {found['exact'] * 1000:.0f} ms; "
        f"{found['loop'] / found['exact']:.2f}x faster than a batch-of-one loop, from which it differs by {error:.0e}; "
        f"{found['exact'] / found['plain']:.2f}x the cost of plain backward passes"
    )


def main() -> None:
    """Measure with LoRA in all layers and in the last three only."""
    encoder = backbone()
    measure(encoder, Lora(), "all layers")
    measure(encoder, Lora(layers=3), "last 3 layers")


if __name__ == "__main__":
    main()
