"""All of a model's weights, each with a change of its own: full fine-tuning, saved and loaded as an expert.

Rows of several such experts have no layer in common, so that they cannot share a pass: the expert axis has length 1.
That is why this kind is not among those that a study can be made of; the method ``fine_tuning`` is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pitune.backbones import Backbone, Site
from pitune.errors import PituneError
from pitune.experts.binders import Handle, on_parameters
from pitune.experts.kind import PEFT_PREFIX, Expert, ExpertKind, Files, Tensors


class Whole(ExpertKind):
    """A change of every weight of every module, zero at the start."""

    kind: Literal["whole"] = "whole"
    peft_type: ClassVar[str] = "WHOLE"
    parameter_names: ClassVar[tuple[str, ...]] = ()

    def sites(self, backbone: Backbone) -> list[Site]:
        """Return every module that has parameters of its own, in the model's order, in whatever tower."""
        return [
            backbone.locate(path) or Site("", path, -1)
            for path, module in backbone.model.named_modules()
            if self.is_site(path, module)
        ]

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` has parameters of its own; those of the model itself only scale its outputs."""
        return bool(path) and any(True for _ in module.parameters(recurse=False))

    def initial(self, module: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Start at zero."""
        return {name: torch.zeros(tensor.shape) for name, tensor in module.named_parameters(recurse=False)}

    def bind(self, module: nn.Module, tensors: Callable[[], Tensors]) -> list[Handle]:
        """Let the module compute with its weights plus the changes.

        Raises:
            PituneError: of several experts, when the module is called.
        """

        def changes() -> dict[str, Tensor]:
            found = {}
            for name, tensor in tensors().items():
                if len(tensor) != 1:
                    raise PituneError(f"{self.kind}: {len(tensor)} experts in one pass; this kind acts one at a time")
                found[name] = tensor[0]
            return found

        return on_parameters(module, changes)

    def from_tensors(self, files: Files) -> Expert:
        """Return the expert that the file holds: its tensors are named as the model's are.

        Raises:
            PituneError: it holds none.
        """
        expert: Expert = {}
        for key, tensor in files.tensors.items():
            site, _, name = key.removeprefix(PEFT_PREFIX).rpartition(".")
            expert.setdefault(site, {})[name] = tensor
        if not expert:
            raise PituneError(f"{files.where}: holds no tensor; the file is not whole")
        return expert
