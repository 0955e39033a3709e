"""Visual prompts (VPT, arXiv 2203.12119) with the expert axis: learned tokens among a tower's input.

*Shallow* (section 3.2): tokens enter the lowest layer with experts and go through all above it. *Deep*: each layer has
tokens of its own, and what it makes of them is dropped. They stand behind the class token and are taken out again, so
that what a model reads of its output stays what it was. There is no dropout: it would couple results to luck.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.backbones import Backbone, Site
from pitune.errors import PituneError
from pitune.experts.binders import Handle, with_tokens
from pitune.experts.kind import ExpertKind, Tensors

PROMPT, WEIGHT, BIAS = "prompt", "projection.weight", "projection.bias"  # (E, tokens, width or projection), …
AFTER_CLASS = 1


class VisualPrompt(ExpertKind):
    """Learned tokens among the input of a tower's layers."""

    kind: Literal["visual_prompt"] = "visual_prompt"
    tokens: int = Field(10, ge=1, description="learned tokens, of each layer where deep")
    deep: bool = Field(False, description="each layer has tokens of its own; else they go through all from the first")
    projection: int | None = Field(
        None, ge=1, description="tokens are learned at this width and brought to the tower's; null: at the tower's"
    )
    peft_type: ClassVar[str] = "VISUAL_PROMPT"
    parameter_names: ClassVar[tuple[str, ...]] = (PROMPT, WEIGHT, BIAS)
    neutral: ClassVar[bool] = False

    def sites(self, backbone: Backbone) -> list[Site]:
        """Return the layers whose input gets tokens: of each tower the lowest with experts, where deep all."""
        found: list[Site] = []
        for name, lowest in self.first_layers(backbone).items():
            tower = backbone.towers[name]
            numbers = range(lowest, tower.depth if self.deep else lowest + 1)
            found += [Site(name, f"{tower.stack}.{number}", number) for number in numbers]
        return found

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` is a layer of a stack."""
        return path.rpartition(".")[2].isdigit()

    def initial(self, module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the tokens as VPT does for patches as wide as the tower; the projection as torch draws linear layers."""
        width = width_of(module)
        learned = self.projection or width
        bound = math.sqrt(3 / learned)
        held = {PROMPT: torch.empty(self.tokens, learned).uniform_(-bound, bound, generator=generator)}
        if self.projection is not None:
            bound = 1 / math.sqrt(learned)
            held[WEIGHT] = torch.empty(width, learned).uniform_(-bound, bound, generator=generator)
            held[BIAS] = torch.zeros(width)
        return held

    def bind(self, module: nn.Module, tensors: Callable[[], Tensors]) -> list[Handle]:
        """Do nothing: shallow tokens go through layers that are no sites."""
        return []

    def bind_model(self, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]]) -> list[Handle]:
        """Put the tokens in."""
        handles: list[Handle] = []
        for path, tensors in sites.items():
            layers = layers_from(model, path)[: 1 if self.deep else None]
            handles += with_tokens(layers, functools.partial(_tokens, tensors), AFTER_CLASS)
        return handles

    def names_at(self, held: Tensors) -> set[str]:
        """Return the tokens' name, and those of a projection where there is one."""
        return {PROMPT} if self.projection is None else set(self.parameter_names)


def layers_from(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the layer at ``path`` and those above it."""
    stack, _, number = path.rpartition(".")
    layers = model.get_submodule(stack)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)[int(number) :]


def width_of(layer: nn.Module) -> int:
    """Return how wide the tokens that a transformer's layer reads are.

    Raises:
        PituneError: it has no linear module, whose input would tell.
    """
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    raise PituneError(f"{type(layer).__name__} has no linear module; it is no layer that tokens can be put into")


def _tokens(tensors: Callable[[], Tensors]) -> Tensor:
    """Return the tokens of all experts at the tower's width: (E, tokens, width)."""
    held = tensors()
    if WEIGHT not in held:
        return held[PROMPT]
    return torch.baddbmm(held[BIAS].unsqueeze(1), held[PROMPT], held[WEIGHT].transpose(1, 2))
