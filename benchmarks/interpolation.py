"""A training step of an interpolation of k = 4 neighbours and the own expert, against a single expert's step.

python benchmarks/interpolation.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import backbone, rows, side_by_side, task, trained_looking

from pitune.experts import Adapter, Bank, ExpertKind, Lora
from pitune.interpolation.mixture import Mixture
from pitune.training.examples import Rows

K, STEPS, BATCH = 4, 20, 16


def steps(module: Bank | Mixture, examples: Rows) -> Callable[[], None]:
    """Return what takes a few training steps of a bank of one, or of a mixture."""
    encoder = examples.backbone
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def run() -> None:
        for chosen in examples.order("benchmark", STEPS, BATCH).tolist():
            with module.attached(encoder.model):
                embeddings = encoder(examples.inputs(chosen), examples.first)
            logits = encoder.settings.scale * embeddings @ examples.candidates.T
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, examples.labels[chosen].to(logits.device)).backward()
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
        examples = rows(encoder, kind, task(), "movie@64#0")
        examples.inputs(range(len(examples)))
        experts = [trained_looking(kind, encoder, seed) for seed in range(K + 1)]
        single = Bank(kind, experts[-1:]).to(encoder.device)
        mixture = Mixture(kind, experts, torch.zeros(K + 1)).to(encoder.device)
        found = side_by_side({"single": steps(single, examples), "mixture": steps(mixture, examples)})
        print(
            f"{name}: a step of {BATCH} rows takes {found['mixture'] / STEPS * 1000:.0f} ms with k = {K}, "
            f"{found['mixture'] / found['single']:.2f}x a single expert's"
        )


if __name__ == "__main__":
    main()
