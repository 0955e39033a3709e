"""What takes the place of a layer that is not to run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


@contextlib.contextmanager
def replaced(layers: nn.ModuleList, which: range, returns_tuple: bool, hidden: Tensor | None) -> Iterator[None]:
    """Let stand-ins take the place of some layers inside the block; the last of them hands on ``hidden``."""
    kept = {index: layers[index] for index in which}
    for index, layer in kept.items():
        last = index == which.stop - 1
        layers._modules[str(index)] = StandIn(layer, returns_tuple, hidden if last else None)
    try:
        yield
    finally:
        for index, layer in kept.items():
            layers._modules[str(index)] = layer


@contextlib.contextmanager
def noted(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Note what a layer gives inside the block, once for each pass."""
    found: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()
