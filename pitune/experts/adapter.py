"""Bottleneck adapters (arXiv 1902.00751) with the expert axis: y + up(act(down(y))).

They sit after attention and after feed-forward, as in the pi-Tuning code (arXiv 2304.14381). PEFT has no such method;
the files are those that PEFT would write, with ``peft_type`` ``BOTTLENECK``, and :func:`pitune.load` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.experts.kind import Expert, ExpertKind, Tensors

DOWN, DOWN_BIAS, UP, UP_BIAS = "adapter_down.weight", "adapter_down.bias", "adapter_up.weight", "adapter_up.bias"
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
}
# The ends of the paths of the modules that close the attention and the feed-forward block, in the usual encoders.
BLOCK_ENDS = (
    *("output.dense", "out_lin", "ffn.lin2", "attn.o", "attn.Wo", "mlp.Wo"),
    *("self_attn.out_proj", "attention.o_proj", "mlp.fc2"),  # of CLIP and ViT
)


class Adapter(ExpertKind):
    """Bottleneck adapters on the outputs of the attention and the feed-forward block, inside the residual branch."""

    kind: Literal["adapter"] = "adapter"
    width: int = Field(32, ge=1, description="of the bottleneck")
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    targets: tuple[str, ...] = Field(BLOCK_ENDS, min_length=1, description="ends of the modules' paths")
    peft_type: ClassVar[str] = "BOTTLENECK"
    parameter_names: ClassVar[tuple[str, ...]] = (DOWN, DOWN_BIAS, UP, UP_BIAS)

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` closes an attention or feed-forward block."""
        return isinstance(module, nn.Linear) and any(f".{path}".endswith("." + target) for target in self.targets)

    def initial(self, module: nn.Linear, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the way down within 1 / √width as torch does; the way up is zero."""
        width = module.out_features
        bound = 1 / math.sqrt(width)
        return {
            DOWN: torch.empty(self.width, width).uniform_(-bound, bound, generator=generator),
            DOWN_BIAS: torch.zeros(self.width),
            UP: torch.zeros(width, self.width),
            UP_BIAS: torch.zeros(width),
        }

    def apply(self, tensors: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Add each group's own bottleneck to ``y``."""
        down, down_bias, up, up_bias = (tensors[name].to(y.dtype) for name in self.parameter_names)
        groups = y.reshape(len(down), -1, y.shape[-1])  # (E, rows · tokens, width)
        inner = torch.baddbmm(down_bias.unsqueeze(1), groups, down.transpose(1, 2))
        update = torch.baddbmm(up_bias.unsqueeze(1), ACTIVATIONS[self.activation](inner), up.transpose(1, 2))
        return y + update.view_as(y)

    def peft_config(self, expert: Expert) -> dict[str, Any]:
        """Return the adapter's fields in the manner of PEFT's configuration."""
        return {
            "peft_type": self.peft_type,
            "bottleneck_width": self.width,
            "activation": self.activation,
            "target_modules": sorted(expert),
        }

    @classmethod
    def from_peft_config(cls, config: Mapping[str, Any]) -> Adapter:
        """Return the kind of a saved adapter."""
        return cls(
            width=config["bottleneck_width"], activation=config["activation"], targets=tuple(config["target_modules"])
        )
