"""The interpolation: softmax(alpha) over k neighbours' experts and the target's own, one effective expert a site.

Source: pi-Tuning, arXiv 2304.14381, section 3.3. Because the mixed expert acts through the same ``contract`` that
merges it for good, the exported adapter scores what the interpolation scored.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pitune.experts.bank import Bank, Site, attach
from pitune.experts.kind import Expert, ExpertKind
from pitune.interpolation.settings import Granularity


class Mixture(nn.Module):
    """k + 1 experts and the weights that mix them.

    Args:
        kind: the experts' kind.
        experts: the neighbours' experts and, last, the target's own.
        start: the logits that the weights start from, (k + 1,).
        granularity: one set of weights per site, per layer, or one in all.
    """

    def __init__(
        self, kind: ExpertKind, experts: Sequence[Expert], start: Tensor, granularity: Granularity = "site"
    ) -> None:
        super().__init__()
        self.members = Bank(kind, experts)
        groups = [_group(name, granularity) for name, _ in self.members.named_sites()]
        names = sorted(set(groups))
        self.rows = [names.index(group) for group in groups]
        self.alpha = nn.Parameter(start.float().repeat(len(names), 1))  # (groups, k + 1)

    def weights(self) -> Tensor:
        """Return the weights of every site, in the bank's order: (sites, k + 1), each row summing to 1."""
        return self.alpha.softmax(-1)[self.rows]

    @contextlib.contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Let the mixed expert act on ``model`` inside the block."""
        weights = self.weights()
        sites = {name: _Mixed(site, weights[index]) for index, (name, site) in enumerate(self.members.named_sites())}
        handles = attach(model, sites)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def merged(self) -> Expert:
        """Return the mixture as one expert, on the CPU: a LoRA of rank (k + 1) · rank, or an average."""
        weights = self.weights()
        return {
            name: {
                key: tensor[0].cpu().clone()
                for key, tensor in self.members.kind.contract(site.tensors(), weights[index]).items()
            }
            for index, (name, site) in enumerate(self.members.named_sites())
        }


class _Mixed(nn.Module):
    """One site of a mixture, with the weights of this forward pass."""

    def __init__(self, site: Site, weights: Tensor) -> None:
        super().__init__()
        self.kind = site.kind
        self.effective = site.kind.contract(site.tensors(), weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.kind.apply(self.effective, x, y)


def _group(site: str, granularity: Granularity) -> str:
    """Return the name of the set of weights that ``site`` uses; a layer is the first number in the module's path."""
    if granularity == "site":
        return site
    if granularity == "global":
        return ""
    number = re.search(r"\.(\d+)\.", site)
    return f"{int(number[1]):06d}" if number else ""


def merge(kind: ExpertKind, experts: Sequence[Expert], weights: Sequence[float]) -> Expert:
    """Mix experts with the same fixed weights at every site into one."""
    mixture = Mixture(kind, experts, torch.tensor(list(weights), dtype=torch.float64).log())
    return mixture.merged()
