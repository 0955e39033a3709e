"""A training step of an interpolation of k = 4 neighbours and the own expert, against a single expert's step.

    python benchmarks/interpolation.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from common import backbone, rows, side_by_side, task, trained_looking
from torch import nn

from pitune.experts import Adapter, Bank, ExpertKind
from pitune.interpolation.mixture import Mixture

K, STEPS, BATCH = 4, 20, 16


def main() -> None:
    """Measure both kinds, in all layers and in the last three only."""
    encoder = backbone()
    from pitune.experts import Lora

    kinds: dict[str, ExpertKind] = {
        "lora, all layers": Lora(),
        "lora, last 3 layers": Lora(layers=3),
        "adapter, all layers": Adapter(),
    }
    for name, kind in kinds.items():
        examples = rows(encoder, kind, task(), "movie@64#0")
        examples.inputs(range(len(examples)))
        experts = [trained_looking(kind, encoder, seed) for seed in range(K + 1)]
        order = examples.order("benchmark", STEPS, BATCH).tolist()

        def steps(module: nn.Module, attached: Callable[[nn.Module], contextlib.AbstractContextManager[None]]) -> Callable[[], None]:
            optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

            def run() -> None:
                for chosen in order:  # noqa: B023 (called before the next round)
                    with attached(encoder.model):
                        embeddings = encoder(examples.inputs(chosen), examples.first)  # noqa: B023
                    logits = encoder.settings.scale * embeddings @ examples.candidates.T  # noqa: B023
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(logits, examples.labels[chosen].to(logits.device)).backward()  # noqa: B023
                    optimizer.step()

            return run

        single = Bank(kind, experts[-1:]).to(encoder.device)
        mixture = Mixture(kind, experts, torch.zeros(K + 1)).to(encoder.device)
        found = side_by_side({"single": steps(single, single.attached), "mixture": steps(mixture, mixture.attached)})
        print(
            f"{name}: a step of {BATCH} rows takes {found['mixture'] / STEPS * 1000:.0f} ms with k = {K}, "
            f"{found['mixture'] / found['single']:.2f}x a single expert's"
        )


if __name__ == "__main__":
    main()
