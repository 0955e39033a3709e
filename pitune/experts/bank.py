"""The bank: E experts of one kind on one backbone, stacked on the expert axis. The one idea of pitune.

Rows come as E groups of equal size, one after another; each group meets its own expert, the frozen backbone runs once
for all. What E means is the caller's business: experts in a pack, rows of a batch (exact Fisher), experts to compare.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pitune.experts.kind import Expert, ExpertKind, Tensors


class Site(nn.Module):
    """The E experts' parameters at one module of the backbone, each (E, …)."""

    def __init__(self, kind: ExpertKind, tensors: Tensors) -> None:
        super().__init__()
        self.kind = kind
        # PyTorch allows no dots in a parameter's name.
        self.held = nn.ParameterDict({name.replace(".", "|"): nn.Parameter(tensor) for name, tensor in tensors.items()})

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their own names."""
        return {name.replace("|", "."): tensor for name, tensor in self.held.items()}


class Bank(nn.Module):
    """E experts of one kind.

    Args:
        kind: their kind.
        experts: one or more experts with the same sites; see :data:`pitune.experts.kind.Expert`.
    """

    def __init__(self, kind: ExpertKind, experts: Sequence[Expert]) -> None:
        super().__init__()
        self.kind = kind
        self.size = len(experts)
        stacked = {}
        for name in experts[0]:
            parts = [expert[name] for expert in experts]
            parts = [kind.align(part, list(parts)) for part in parts]
            stacked[name] = Site(kind, {key: torch.stack([part[key] for part in parts]).float() for key in parts[0]})
        self.sites = nn.ModuleDict({name.replace(".", "|"): site for name, site in stacked.items()})

    def named_sites(self) -> Iterator[tuple[str, Site]]:
        """Yield each site with its module's path in the backbone."""
        for name, site in self.sites.items():
            assert isinstance(site, Site)
            yield name.replace("|", "."), site

    def expert(self, index: int, whole: Mapping[str, Tensor] | None = None) -> Expert:
        """Return a copy of one expert, on the CPU.

        Args:
            index: which of the E.
            whole: tensors by parameter name to cut it out of, in place of the bank's own (of which ZeRO-3 keeps parts).
        """
        found: Expert = {}
        for name, tensor in (whole or dict(self.named_parameters())).items():
            _, site, _, key = name.split(".")  # sites.<site>.held.<key>
            cut = tensor.detach()[index].cpu().clone()
            found.setdefault(site.replace("|", "."), {})[key.replace("|", ".")] = cut
        return found

    def only(self, which: Sequence[int]) -> _Some:
        """Return some of the experts, one for each group of rows, as who acts."""
        return _Some(self, list(which))

    def attached(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Let all experts act on ``model`` (a Hugging Face model) inside the block; afterwards it is as it was."""
        return self.only(range(self.size)).attached(model)


class _Some:
    """Some experts of a bank."""

    def __init__(self, bank: Bank, which: list[int]) -> None:
        self.bank, self.which = bank, which

    @contextlib.contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Let them act on ``model`` inside the block."""
        sites = {name: functools.partial(self._tensors, site) for name, site in self.bank.named_sites()}
        handles = attach(self.bank.kind, model, sites)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tensors(self, site: Site) -> Tensors:
        tensors: Tensors = site.tensors()
        if self.which == list(range(self.bank.size)):
            return tensors
        return {name: tensor[self.which] for name, tensor in tensors.items()}


def attach(
    kind: ExpertKind, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Make the experts' tensors at each site, (E, …) whenever asked, take part in ``model``'s pass."""

    def hook(tensors: Callable[[], Tensors]) -> Callable[..., Tensor]:
        return lambda _, inputs, output: kind.apply(tensors(), inputs[0], output)

    return [model.get_submodule(name).register_forward_hook(hook(tensors)) for name, tensors in sites.items()]
