"""What takes the place of a layer that is not to run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class StandIn(nn.Module):
    """Takes the place of a layer: hands on ``hidden`` where it has one, else what it was given."""

    def __init__(self, layer: nn.Module, returns_tuple: bool, hidden: Tensor | None = None) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: no submodule
        self.returns_tuple = returns_tuple
        self.hidden = hidden

    def __getattr__(self, name: str) -> Any:
        # Some models ask a layer what kind of attention it has before they call it.
        return getattr(self.layer[0], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        """Hand on what is at hand."""
        out = hidden_states if self.hidden is None else self.hidden
        return (out,) if self.returns_tuple else out
