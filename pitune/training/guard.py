"""What keeps the experts of a pack apart: nobody's gradient that is not finite reaches another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
"""Steps without overflow after which an expert's loss scale doubles (torch's GradScaler has the same numbers)."""


class GradientGuard:
    """Keeps experts apart: a loss scale for each, and a hook on each leaf that zeroes slices that are not finite.

    The hook sees the gradient, (E, …), before it is accumulated, reduced or clipped by anyone.

    Args:
        experts: E.
        scaled: whether losses are scaled.
        device: where the gradients are.
    """

    def __init__(self, experts: int, scaled: bool, device: torch.device) -> None:
        self.experts = experts
        self.scaled = scaled
        self.scale = torch.full((experts,), FIRST_SCALE if scaled else 1.0, device=device)
        self._good_steps = torch.zeros(experts, device=device)
        self._bad = torch.zeros(experts, dtype=torch.bool, device=device)
        self._inverse = 1.0 / self.scale
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the hook on every one of ``parameters``."""
        self._handles += [parameter.register_hook(self._hook) for parameter in parameters]  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self) -> None:
        """Begin a backward pass with the present scales."""
        self._inverse = 1.0 / self.scale

    def finish(self) -> Tensor:
        """End an optimizer step: return the experts, (E,) bool, that were not finite, and adapt their scales."""
        bad = self._bad.clone()
        if dist.get_world_size() > 1:
            flags = bad.to(torch.int32)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            bad = flags.bool()
        self._bad.zero_()
        if self.scaled:
            self._good_steps = torch.where(bad, 0.0, self._good_steps + 1.0)
            grown = self._good_steps >= GROWTH_INTERVAL
            self.scale = torch.where(bad, (self.scale * 0.5).clamp(min=1.0), self.scale * (1.0 + grown.float()))
            self._good_steps = torch.where(grown, 0.0, self._good_steps)
        return bad

    def state(self) -> dict[str, Tensor]:
        """Return what :meth:`restore` needs."""
        return {"scale": self.scale, "good_steps": self._good_steps, "bad": self._bad}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up the state that another guard returned."""
        self.scale = state["scale"].to(self.scale.device)
        self._good_steps = state["good_steps"].to(self.scale.device)
        self._bad = state["bad"].to(self.scale.device)

    def _hook(self, gradient: Tensor) -> Tensor | None:
        """Return ``gradient`` without its scales and without what is not finite, or None to leave it as it is."""
        rows = gradient.reshape(self.experts, -1)  # (E, numbers per expert)
        if self.scaled:
            rows = rows * self._inverse.unsqueeze(1)
        bad = ~rows.sum(1).isfinite()  # one pass; a sum that overflows is no gradient either
        if gradient.is_cuda or bad.any():  # on a GPU, asking would wait for it
            self._bad |= bad
            rows = rows.masked_fill(bad.unsqueeze(1), 0.0)
        elif not self.scaled:
            return None
        return rows.view(gradient.shape)
