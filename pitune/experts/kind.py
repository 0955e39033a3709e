"""What an expert kind is: where it sits in a backbone, how it starts, acts, mixes and is written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.backbones import Backbone, Site
from pitune.errors import PituneError
from pitune.experts.binders import Handle, on_output
from pitune.settings import Settings

Tensors = Mapping[str, Tensor]
"""A site's parameters by name. With the expert axis each is (E, …); of one expert, without it."""
Expert = dict[str, dict[str, Tensor]]
"""One expert: its parameters (without the expert axis) by site, a site being a module's path in the backbone."""
PEFT_PREFIX = "base_model.model."  # what PEFT puts before a module's path


@dataclass(frozen=True)
class Files:
    """What an expert's two files hold.

    Attributes:
        config: of ``adapter_config.json``.
        tensors: of ``adapter_model.safetensors``, by the names that they have there.
        notes: of the same file's head.
        where: names the file of tensors in errors.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, str] = field(default_factory=dict)
    where: str = "expert"


class ExpertKind(Settings, ABC):
    """The settings of one expert kind, and all that differs between kinds.

    To add a kind: subclass this in a file of its own and name it in ``pitune.experts.KINDS``. A kind that changes what
    modules give says where (:meth:`is_site`), how it starts (:meth:`initial`) and how it acts (:meth:`apply`). Another
    one acts by :meth:`bind`, through :mod:`pitune.experts.binders`. What else is here fits most kinds as it is.

    Attributes:
        peft_type: what ``adapter_config.json`` calls the kind; PEFT's own word where PEFT has it.
        other_peft_types: what it may be called there as well.
        parameter_names: of a site's tensors.
        neutral: an expert at its start changes nothing.
        conditional: it acts on candidates' texts beside each example otherwise; see :meth:`beside`.
    """

    kind: str
    layers: int | None = Field(
        None, ge=1, description="only the last so many layers of a tower have experts; null: all"
    )
    towers: tuple[str, ...] | None = Field(
        None, min_length=1, description="the towers that have experts; null: the one that reads examples"
    )
    seed: int = Field(0, ge=0, description="all experts of a study start from the values that this seed draws")
    peft_type: ClassVar[str]
    other_peft_types: ClassVar[tuple[str, ...]] = ()
    parameter_names: ClassVar[tuple[str, ...]]
    neutral: ClassVar[bool] = True
    conditional: ClassVar[bool] = False

    # --- where ---------------------------------------------------------------------------------------------------

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

    def first_layers(self, backbone: Backbone) -> dict[str, int]:
        """Return the lowest layer that has experts, by tower, of the towers that have any.

        Raises:
            PituneError: there is no such tower, or the kind wants more layers than one has.
        """
        first: dict[str, int] = {}
        for name in self.towers or (backbone.examples_tower,):
            if name not in backbone.towers:
                raise PituneError(f"expert.towers: found {name!r}, the backbone has {', '.join(backbone.towers)}")
            first[name] = self.first_layer(backbone.towers[name].depth)
        return first

    def sites(self, backbone: Backbone) -> list[Site]:
        """Return the modules that this kind acts on, in the model's order.

        Raises:
            PituneError: a tower has none, or there is no such tower.
        """
        first = self.first_layers(backbone)
        found: list[Site] = []
        for path, module in backbone.model.named_modules():
            site = backbone.locate(path)
            if site and site.tower in first and site.layer >= first[site.tower] and self.is_site(path, module):
                found.append(site)
        for name in first:
            if all(site.tower != name for site in found):
                raise PituneError(self._nothing(backbone, name))
        return found

    @abstractmethod
    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module``, at ``path`` in one of the layers with experts, gets one."""

    # --- start and action ----------------------------------------------------------------------------------------

    def start(self, backbone: Backbone) -> Expert:
        """Return the expert that every expert of the study starts from."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            site.path: self.initial(backbone.model.get_submodule(site.path), generator) for site in self.sites(backbone)
        }

    @abstractmethod
    def initial(self, module: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw one site's starting values (no expert axis), from ``generator`` only."""

    def apply(self, tensors: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Return what a site gives with E experts acting on E groups of rows; a kind with its own ``bind`` has none.

        Args:
            tensors: parameters (E, …).
            x: what went into the module, (E · rows, tokens, width).
            y: what came out of it, (E · rows, tokens, output width).
        """
        return y

    def bind(self, module: nn.Module, tensors: Callable[[], Tensors]) -> list[Handle]:
        """Let experts act on one site's module: by default, on what it gives.

        Args:
            module: the site's.
            tensors: gives the parameters (E, …), in every pass anew.

        Returns:
            What undoes it.
        """
        return on_output(module, lambda x, y: self.apply(tensors(), x, y))

    def bind_model(self, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]]) -> list[Handle]:
        """Do to the model what no site's module can do; by default nothing."""
        return []

    def beside(self, tensors: Tensors, examples: Tensor) -> Tensors:
        """Return what E experts are beside each of their examples: E · rows experts that the examples made of them.

        Args:
            tensors: a site's parameters, (E, …).
            examples: the examples' embeddings, (E · rows, width), each of length 1.

        Returns:
            Parameters (E · rows, …): by default an example changes nothing, and there are E.
        """
        return tensors

    # --- several experts -----------------------------------------------------------------------------------------

    def mix(self, tensors: Tensors, weights: Tensor) -> dict[str, Tensor]:
        """Mix E experts with ``weights`` (E,) into one effective expert, parameters (1, …): by default their average.

        It is differentiable in both, and serves tuning and merging alike: so merged equals mixed.
        """
        return {name: torch.tensordot(weights, tensor, dims=1).unsqueeze(0) for name, tensor in tensors.items()}

    def align(self, expert: Tensors, others: list[Tensors]) -> dict[str, Tensor]:
        """Give ``expert`` the shapes that it needs to be stacked with ``others``, without changing what it does.

        By default it stays as it is; what then has another shape is an error of the bank's.
        """
        return dict(expert)

    # --- task vectors --------------------------------------------------------------------------------------------

    def vector(self, tensors: Tensors, start: Tensors) -> dict[str, Tensor]:
        """Return a site's task vector (arXiv 2212.04089, section 2), which merges work on: by default θ − θ_start.

        Args:
            tensors: the parameters of one expert there, without the expert axis.
            start: those of the start that it has in common with the experts that it is merged with.

        Returns:
            What has moved, by name, always in the same order.
        """
        return {name: tensors[name] - start[name] for name in sorted(tensors)}

    def from_vector(self, vector: Tensors, start: Tensors, rank: int) -> dict[str, Tensor]:
        """Return the parameters to which ``vector`` leads from ``start``; the inverse of :meth:`vector`.

        Args:
            vector: a task vector, or several merged into one.
            start: the common start.
            rank: of a kind whose experts have one, that of the result, which comes as close as this rank allows.
        """
        return {name: start[name] + moved for name, moved in vector.items()}

    def summed(self, tensors: Tensors, start: Tensors, weights: Tensor) -> dict[str, Tensor]:
        """Add up task vectors: the start plus Σ wᵢ times the vector of expert i, as parameters (1, …), exactly.

        With weights that sum to one it is :meth:`mix`.

        Args:
            tensors: the parameters of E experts at a site, (E, …).
            start: the common start, without the expert axis.
            weights: (E,), of any sign and sum.
        """
        return {
            name: (start[name] + torch.tensordot(weights, tensor - start[name], dims=1)).unsqueeze(0)
            for name, tensor in tensors.items()
        }

    def randomized(self, tensors: Tensors, start: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
        """Return parameters that have moved as far from the start as ``tensors`` have, in random directions.

        Args:
            tensors: the parameters of one expert at a site, without the expert axis.
            start: the common start.
            generator: draws the directions, on the CPU.
        """
        found = {}
        for name in sorted(tensors):  # that of a file's tensors is luck
            direction = torch.randn(tensors[name].shape, generator=generator)
            found[name] = start[name] + direction * ((tensors[name] - start[name]).norm() / direction.norm())
        return found

    # --- files ---------------------------------------------------------------------------------------------------

    def peft_config(self, expert: Expert) -> dict[str, Any]:
        """Return the kind's own part of PEFT's ``adapter_config.json`` for ``expert``: by default its settings."""
        own = self.model_dump(mode="json", exclude=set(ExpertKind.model_fields))
        return {"peft_type": self.peft_type, "target_modules": sorted(expert), **own}

    @classmethod
    def from_peft_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the kind that ``adapter_config.json`` describes; the inverse of :meth:`peft_config`.

        Raises:
            KeyError: something is missing.
            ValueError: it is a variant that pitune does not compute.
        """
        return cls.model_validate(
            {name: config[name] for name in cls.model_fields if name not in ExpertKind.model_fields}
        )

    def to_tensors(self, expert: Expert) -> dict[str, Tensor]:
        """Return what ``adapter_model.safetensors`` holds: by default one tensor for each of a site's."""
        return {
            f"{PEFT_PREFIX}{site}.{name}": tensor.contiguous()
            for site, held in expert.items()
            for name, tensor in held.items()
        }

    def notes(self, expert: Expert) -> dict[str, str]:
        """Return the one note in the head of that file (of several, the order and so the bytes would be luck)."""
        return {"format": "pt"}

    def from_tensors(self, files: Files) -> Expert:
        """Return the expert that the files hold; the inverse of :meth:`to_tensors`.

        Raises:
            PituneError: a tensor is missing, or is none of this kind's.
        """
        expert: Expert = {}
        for key, tensor in files.tensors.items():
            name = next((name for name in self.parameter_names if key.endswith("." + name)), None)
            if name is None:
                raise PituneError(f"{files.where}: tensor {key} belongs to no {self.kind} expert")
            expert.setdefault(key.removeprefix(PEFT_PREFIX)[: -len(name) - 1], {})[name] = tensor
        for site, held in expert.items():
            missing = self.names_at(held) - set(held)
            if missing:
                raise PituneError(f"{files.where}: {site} has no {min(missing)}; the file is not whole")
        if not expert:
            raise PituneError(f"{files.where}: holds no tensor; the file is not whole")
        return expert

    def names_at(self, held: Tensors) -> set[str]:
        """Return the names of the tensors at the site that has ``held``: by default all, at every site."""
        return set(self.parameter_names)

    def placed(self, expert: Expert, model: nn.Module) -> Expert:
        """Return ``expert`` with ``model``'s own paths, where its files do not say them; by default they do."""
        return expert

    def _nothing(self, backbone: Backbone, tower: str) -> str:
        """Return the error that says that a tower has no site."""
        stack = backbone.layers(tower)
        if "targets" not in type(self).model_fields:
            types = sorted({type(module).__name__ for module in stack.modules()} - {"ModuleList"})
            return f"expert.kind: {self.kind} finds nothing to act on; the layers of {tower} have {', '.join(types)}"
        linear = sorted(
            {name.partition(".")[2] for name, module in stack.named_modules() if isinstance(module, nn.Linear)}
        )
        return f"expert.targets: nothing in the backbone is so named; its layers have {', '.join(linear)}"
