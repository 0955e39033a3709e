"""BitFit (arXiv 2106.10199) with the expert axis: an addition to every bias of linear modules and layer norms.

The biases of keys are left out: they add the same to all scores of a query, which the softmax takes away again, and
Adam would make numbers of the rounding errors that are their gradients.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pitune.experts.binders import KEYS
from pitune.experts.kind import ExpertKind, Tensors

BIAS = "bias_delta"  # (E, output width)


class BitFit(ExpertKind):
    """Additions to the biases."""

    kind: Literal["bitfit"] = "bitfit"
    peft_type: ClassVar[str] = "BITFIT"
    parameter_names: ClassVar[tuple[str, ...]] = (BIAS,)

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` adds a bias that matters."""
        biased = isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None
        return biased and path.rpartition(".")[2] not in KEYS

    def initial(self, module: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Start at zero."""
        return {BIAS: torch.zeros(module.bias.shape)}

    def apply(self, tensors: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Add each group's own to ``y``."""
        bias = tensors[BIAS].to(y.dtype)
        groups = y.reshape(len(bias), -1, y.shape[-1])  # (E, rows · tokens, output width)
        return (groups + bias.unsqueeze(1)).view_as(y)
