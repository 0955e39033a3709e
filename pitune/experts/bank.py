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

from pitune.errors import PituneError
from pitune.experts.binders import Handle
from pitune.experts.kind import Expert, ExpertKind, Tensors


class Site(nn.Module):
    """The E experts' parameters at one module of the backbone, each (E, …)."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        # PyTorch allows no dots in a parameter's name.
        self.held = nn.ParameterDict({name.replace(".", "|"): nn.Parameter(tensor) for name, tensor in tensors.items()})

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their own names."""
        return {name.replace("|", "."): tensor for name, tensor in self.held.items()}

    def forward(self, which: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Return the tensors that act, (E, …): all experts' or some's.

        A call, for ZeRO-3 brings a module's parameters when it is called, and takes them away when it returns: there
        they are copies.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in self.tensors().items():
            if which is not None:
                found[name] = tensor[list(which)]
            else:
                found[name] = tensor.clone() if hasattr(tensor, "ds_id") else tensor
        return found


class Bank(nn.Module):
    """E experts of one kind.

    Args:
        kind: their kind.
        experts: one or more experts with the same sites; see :data:`pitune.experts.kind.Expert`.

    Raises:
        PituneError: an expert lacks a site that another has, or has a tensor of another shape.
    """

    def __init__(self, kind: ExpertKind, experts: Sequence[Expert]) -> None:
        super().__init__()
        self.kind = kind
        self.size = len(experts)
        for expert in experts:
            unlike = expert.keys() ^ experts[0].keys()
            if unlike:
                raise PituneError(f"{kind.kind}: one expert has {min(unlike)}, another has not; they share no bank")
        self.sites = nn.ModuleDict(
            {path.replace(".", "|"): _stacked(kind, path, [expert[path] for expert in experts]) for path in experts[0]}
        )

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

    def only(self, which: Sequence[int]) -> Some:
        """Return some of the experts, one for each group of rows, as who acts."""
        return Some(self, None if list(which) == list(range(self.size)) else list(which))

    @property
    def conditional(self) -> bool:
        """Whether the experts act on texts beside each example otherwise."""
        return self.kind.conditional

    def attached(self, model: nn.Module, examples: Tensor | None = None) -> contextlib.AbstractContextManager[None]:
        """Let all experts act on ``model`` (a Hugging Face model) inside the block; afterwards it is as it was.

        ``examples`` as :func:`attach` takes them.
        """
        return Some(self, None).attached(model, examples)


class Some:
    """Some experts of a bank (None: all), as who acts."""

    def __init__(self, bank: Bank, which: list[int] | None) -> None:
        self.bank, self.which, self.conditional = bank, which, bank.conditional

    @contextlib.contextmanager
    def attached(self, model: nn.Module, examples: Tensor | None = None) -> Iterator[None]:
        """Let them act on ``model`` inside the block, beside ``examples`` as :func:`attach` takes them."""
        sites = {path: functools.partial(site, self.which) for path, site in self.bank.named_sites()}
        handles = attach(self.bank.kind, model, sites, examples)
        try:
            yield
        finally:
            detach(handles)


def attach(
    kind: ExpertKind, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]], examples: Tensor | None = None
) -> list[Handle]:
    """Let experts of a kind act on ``model``, until what is returned is removed.

    Args:
        kind: the experts' kind.
        model: a Hugging Face model.
        sites: by path, what gives the tensors (E, …) there, in every pass anew.
        examples: of a kind that is conditional, the embeddings beside which texts are read, (E · rows, width): texts
            come as E · rows equal groups.

    Raises:
        PituneError: the kind cannot act on a module; the model is then as it was.
    """
    if examples is not None:
        sites = {path: functools.partial(_beside, kind, tensors, examples) for path, tensors in sites.items()}
    handles: list[Handle] = []
    try:
        for path, tensors in sites.items():
            try:
                handles += kind.bind(model.get_submodule(path), tensors)
            except PituneError as error:
                raise PituneError(f"{path}: {error}") from error
        handles += kind.bind_model(model, sites)
    except BaseException:
        detach(handles)
        raise
    return handles


def _beside(kind: ExpertKind, tensors: Callable[[], Tensors], examples: Tensor) -> Tensors:
    return kind.beside(tensors(), examples)


def detach(handles: Sequence[Handle]) -> None:
    """Undo what :func:`attach` did, the last first."""
    for handle in reversed(handles):
        handle.remove()


def _stacked(kind: ExpertKind, path: str, parts: list[dict[str, Tensor]]) -> Site:
    """Stack the experts' tensors at one site on the expert axis."""
    aligned = [kind.align(part, list(parts)) for part in parts]
    for part in aligned:
        for name, tensor in aligned[0].items():
            if name not in part or part[name].shape != tensor.shape:
                shape = tuple(part[name].shape) if name in part else "nothing"
                raise PituneError(
                    f"{kind.kind}: {path} has {name} {tuple(tensor.shape)} in one expert and {shape} in another; "
                    "they share no bank"
                )
    return Site({name: torch.stack([part[name] for part in aligned]).float() for name in aligned[0]})
