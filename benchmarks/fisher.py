"""Exact Fisher through the expert axis, against a batch-of-one loop and against one plain backward pass.

python benchmarks/fisher.py
"""

from __future__ import annotations

import torch
from common import OBJECTIVE, backbone, candidates, loss, rows, side_by_side, task, trained_looking, warm

from pitune.backbones.text import TextBackbone
from pitune.embedding.fisher import fisher
from pitune.experts import Bank, Expert, Lora
from pitune.objectives import Rows

BATCH = 32


def loop(
    encoder: TextBackbone, kind: Lora, expert: Expert, examples: Rows, texts: torch.Tensor, batch: int, square: bool
) -> torch.Tensor:
    """Pass over the rows in batches with one shared expert; square and sum the gradients, or only take them."""
    firsts = encoder.firsts(list(expert))
    bank = Bank(kind, [expert]).to(encoder.device)
    total = torch.zeros(sum(parameter.numel() for parameter in bank.parameters()), device=encoder.device)
    order = examples.by_cost()
    for start in range(0, len(order), batch):
        taken = examples.take(order[start : start + batch])
        summed = loss(encoder, bank, firsts, taken, texts, "sum")
        gradients = torch.autograd.grad(summed, list(bank.parameters()))
        if square:
            total += torch.cat([gradient.flatten().square() for gradient in gradients])
    return total / len(examples)


def measure(encoder: TextBackbone, kind: Lora, where: str) -> None:
    """Print the ratios and the largest difference from the loop."""
    source, expert = task(), trained_looking(kind, encoder, 0)
    examples, texts = rows(encoder, source, "movie@64#0"), candidates(encoder, source)
    warm(encoder, kind, examples)  # the trunk's outputs are kept: all three ways find them
    found = side_by_side(
        {
            "exact": lambda: fisher(encoder, kind, OBJECTIVE, expert, examples, batch=BATCH),
            "loop": lambda: loop(encoder, kind, expert, examples, texts, 1, square=True),
            "plain": lambda: loop(encoder, kind, expert, examples, texts, BATCH, square=False),
        }
    )
    exact = fisher(encoder, kind, OBJECTIVE, expert, examples, batch=BATCH)
    flat = torch.cat([exact[site][key].flatten() for site in exact for key in exact[site]])
    by_loop = loop(encoder, kind, expert, examples, texts, 1, square=True).cpu()
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
