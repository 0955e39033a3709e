"""What an expert kind is: where it sits in a backbone, how it starts, acts, mixes and is written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.backbones import Backbone
from pitune.errors import PituneError
from pitune.settings import Settings

Tensors = Mapping[str, Tensor]
"""A site's parameters by name. With the expert axis each is (E, …); of one expert, without it."""
Expert = dict[str, dict[str, Tensor]]
"""One expert: its parameters (without the expert axis) by site, a site being a module's path in the backbone."""


class ExpertKind(Settings, ABC):
    """The settings of one expert kind, and all that differs between kinds.

    To add a kind: subclass this in a file of its own and name it in ``pitune.experts.AnyKind``.
    """

    kind: str
    layers: int | None = Field(None, ge=1, description="only the last so many layers have experts; null: all")
    seed: int = Field(0, ge=0, description="all experts of a study start from the values that this seed draws")
    peft_type: ClassVar[str]
    parameter_names: ClassVar[tuple[str, ...]]

    def first_layer(self, depth: int) -> int:
        """Return the lowest of ``depth`` layers that has experts; those below are the trunk.

        Raises:
            PituneError: the kind wants more layers than there are.
        """
        if self.layers is not None and self.layers > depth:
            raise PituneError(
                f"expert.layers: found {self.layers}, the backbone has {depth} layers; use at most that many"
            )
        return 0 if self.layers is None else depth - self.layers

    def sites(self, backbone: Backbone) -> dict[str, nn.Linear]:
        """Return the linear modules that this kind acts on, by their path in the Hugging Face model.

        Raises:
            PituneError: there is none.
        """
        found = {}
        for path, module in backbone.model.named_modules():
            site = backbone.locate(path)
            if site is None or site.tower != backbone.examples_tower or not isinstance(module, nn.Linear):
                continue
            if self.is_site(path) and site.layer >= self.first_layer(backbone.towers[site.tower].depth):
                found[path] = module
        if not found:
            linear = sorted(
                {name.split(".", 3)[-1] for name, m in backbone.model.named_modules() if isinstance(m, nn.Linear)}
            )
            raise PituneError(
                f"expert.targets: nothing in the backbone is so named; its layers have {', '.join(linear)}"
            )
        return found

    def start(self, backbone: Backbone) -> Expert:
        """Return the expert that every expert of the study starts from."""
        generator = torch.Generator().manual_seed(self.seed)
        return {name: self.initial(module, generator) for name, module in self.sites(backbone).items()}

    @abstractmethod
    def is_site(self, name: str) -> bool:
        """Say whether the linear module at path ``name`` gets an expert."""

    @abstractmethod
    def initial(self, module: nn.Linear, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw one site's starting values (no expert axis); an expert at its start must change nothing."""

    @abstractmethod
    def apply(self, tensors: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Return what a site gives with E experts acting on E groups of rows.

        Args:
            tensors: parameters (E, …).
            x: what went into the module, (E · rows, tokens, width).
            y: what came out of it, (E · rows, tokens, output width).
        """

    @abstractmethod
    def mix(self, tensors: Tensors, weights: Tensor) -> dict[str, Tensor]:
        """Mix E experts with ``weights`` (E,) into one effective expert, parameters (1, …)."""

    @abstractmethod
    def align(self, expert: Tensors, others: list[Tensors]) -> dict[str, Tensor]:
        """Give ``expert`` the shapes that it needs to be stacked with ``others``, without changing what it does."""

    @abstractmethod
    def peft_config(self, expert: Expert) -> dict[str, Any]:
        """Return the kind's own part of PEFT's ``adapter_config.json`` for ``expert``."""

    @classmethod
    @abstractmethod
    def from_peft_config(cls, config: Mapping[str, Any]) -> ExpertKind:
        """Return the kind that ``adapter_config.json`` describes; the inverse of :meth:`peft_config`."""
