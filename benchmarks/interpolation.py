"""A training step of an interpolation of k = 4 neighbours and the own expert, against a single expert's step.

python benchmarks/interpolation.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import backbone, candidates, loss, rows, side_by_side, task, trained_looking, warm

from pitune.backbones.text import TextBackbone
from pitune.experts import Adapter, Bank, ExpertKind, Lora
from pitune.interpolation.mixture import Mixture
from pitune.objectives import Rows

K, STEPS, BATCH = 4, 20, 16


def steps(
    encoder: TextBackbone, kind: ExpertKind, module: Bank | Mixture, examples: Rows, texts: torch.Tensor
) -> Callable[[], None]:
    """Return what takes a few training steps of a bank of one, or of a mixture."""
    firsts = encoder.firsts(list(kind.start(encoder)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def run() -> None:
        for chosen in examples.order("benchmark", STEPS, BATCH).tolist():
            taken = examples.take(chosen)
            optimizer.zero_grad()
            loss(encoder, module, firsts, taken, texts).backward()
            optimizer.step()

    return run


def main() -> None:
    """Measure both kinds, in all layers and in the last three only."""
    encoder = backbone()
    kinds: dict[str, ExpertKind] = {
        "lora, all layers": Lora(),
        "lora, last 3 layers": Lora(layers=3),
        "adapter, all layers": Adapter(),
    }
    for name, kind in kinds.items():
        source = task()
        examples, texts = rows(encoder, source, "movie@64#0"), candidates(encoder, source)
        warm(encoder, kind, examples)
        experts = [trained_looking(kind, encoder, seed) for seed in range(K + 1)]
        single = Bank(kind, experts[-1:]).to(encoder.device)
        mixture = Mixture(encoder, kind, experts, torch.zeros(K + 1)).to(encoder.device)
        ways = {"single": single, "mixture": mixture}
        found = side_by_side({way: steps(encoder, kind, module, examples, texts) for way, module in ways.items()})
        print(
            f"{name}: a step of {BATCH} rows takes {found['mixture'] / STEPS * 1000:.0f} ms with k = {K}, "
            f"{found['mixture'] / found['single']:.2f}x a single expert's"
        )


if __name__ == "__main__":
    main()
