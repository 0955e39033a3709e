"""The interpolation: softmax(alpha) over k neighbours' experts and the target's own, one effective expert a site.

Source: pi-Tuning, arXiv 2304.14381, section 3.3. Because the mixed expert acts through the same ``mix`` that merges it
for good, the exported adapter scores what the interpolation scored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pitune.backbones import Backbone, Site
from pitune.experts.bank import Bank, attach, detach
from pitune.experts.kind import Expert, ExpertKind, Tensors
from pitune.interpolation.settings import Granularity


class Mixture(nn.Module):
    """k + 1 experts and the weights that mix them; it acts as one expert.

    Args:
        backbone: what they act on; says which layer of which tower each site is in.
        kind: the experts' kind.
        experts: the neighbours' experts and, last, the target's own.
        start: the logits that the weights start from, (k + 1,).
        granularity: one set of weights per site, per layer of a tower, or one in all.
    """

    def __init__(
        self,
        backbone: Backbone,
        kind: ExpertKind,
        experts: Sequence[Expert],
        start: Tensor,
        granularity: Granularity = "site",
    ) -> None:
        super().__init__()
        self.members = Bank(kind, experts)
        self.sites = [_located(backbone, path) for path, _ in self.members.named_sites()]
        groups = [_group(site, granularity) for site in self.sites]
        names = sorted(set(groups))
        self.rows = [names.index(group) for group in groups]
        self.alpha = nn.Parameter(start.float().repeat(len(names), 1))  # (groups, k + 1)

    def weights(self) -> Tensor:
        """Return the weights of every site, in the bank's order: (sites, k + 1), each row summing to 1."""
        return self.alpha.softmax(-1)[self.rows]

    def mixed(self) -> dict[str, Tensors]:
        """Return the effective expert, parameters (1, …) by site."""
        weights = self.weights()
        return {
            path: self.members.kind.mix(site.tensors(), weights[row])
            for row, (path, site) in enumerate(self.members.named_sites())
        }

    @property
    def conditional(self) -> bool:
        """Whether it acts on texts beside each example otherwise."""
        return self.members.conditional

    def attached(self, model: nn.Module, examples: Tensor | None = None) -> contextlib.AbstractContextManager[None]:
        """Let the mixed expert act on ``model`` inside the block, beside ``examples`` as a bank's experts would."""
        return SideBySide([self]).attached(model, examples)

    @torch.no_grad()
    def merged(self) -> Expert:
        """Return the mixture as one expert, on the CPU: a LoRA of rank (k + 1) · rank, or an average."""
        return {
            path: {key: tensor[0].cpu().clone() for key, tensor in held.items()} for path, held in self.mixed().items()
        }


class SideBySide:
    """Several mixtures of as many members each, as who acts: each on a group of rows of its own."""

    def __init__(self, mixtures: Sequence[Mixture]) -> None:
        self.mixtures, self.conditional = mixtures, mixtures[0].conditional

    @contextlib.contextmanager
    def attached(self, model: nn.Module, examples: Tensor | None = None) -> Iterator[None]:
        """Let the mixed experts act on ``model`` inside the block, beside ``examples`` as a bank's would."""
        each = [one.mixed() for one in self.mixtures]
        mixed = {
            path: {name: torch.cat([one[path][name] for one in each]) for name in held}
            for path, held in each[0].items()
        }
        sites = {path: lambda path=path: mixed[path] for path in mixed}  # type: ignore[misc]
        handles = attach(self.mixtures[0].members.kind, model, sites, examples)
        try:
            yield
        finally:
            detach(handles)


def _located(backbone: Backbone, path: str) -> Site:
    """Return where a site is; what is in no tower's layers counts as a layer of its own, -1."""
    return backbone.locate(path) or Site("", path, -1)


def _group(site: Site, granularity: Granularity) -> tuple[object, ...]:
    """Return what tells the set of weights that a site uses from others."""
    return {"site": (site.path,), "layer": (site.tower, site.layer), "global": ()}[granularity]


def merge(backbone: Backbone, kind: ExpertKind, experts: Sequence[Expert], weights: Sequence[float]) -> Expert:
    """Mix experts with the same fixed weights at every site into one."""
    start = torch.tensor(list(weights), dtype=torch.float64).log()
    return Mixture(backbone, kind, experts, start, "global").merged()
