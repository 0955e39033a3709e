"""The class token alone: what is left to compute where experts only put tokens among the last layer's input.

A tower whose pooling reads nothing but its first token, the class token, needs of its last layer that token's output.
Tokens put among the layer's input change neither the class token's query q nor the keys and values of the tower's own
tokens. Let z be log Σ exp(q·k) over these, and m the mean of their values under that softmax. With n more keys kᵢ and
values vᵢ the class token meets, exactly (online softmax, arXiv 1805.02867),

    (exp(z) m + Σᵢ exp(q·kᵢ) vᵢ) / (exp(z) + Σᵢ exp(q·kᵢ)).

So the class token, m and z are all that is kept of an input, and a step runs the layer on 1 + n tokens, not hundreds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pitune.backbones.attention import asks_for_its_function, attends_by
from pitune.backbones.standin import StandIn

CLASS_TOKEN = -1
"""Stands for a tower's lowest layer with experts where it is the last, and its class token is all that runs."""


@contextlib.contextmanager
def noting(layers: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Note, of what runs through a stack's last layer inside the block, the states that :func:`acting` goes on from.

    The layer runs without its hooks: who puts tokens in then has no part in it.

    Yields:
        A list that gets, for each pass, (rows, 1, width + heads · head width + heads), float32.
    """
    bare = _Bare(layers[-1])
    found: list[Tensor] = []

    def attend(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, __: Tensor | None, **named: Any) -> Any:
        scores = _scores(query[:, :, :1], key, named)
        with torch.autocast(query.device.type, enabled=False):
            met = torch.softmax(scores, -1) @ value.float()
        side_by_side = met.transpose(1, 2).flatten(2)  # of all heads, (rows, 1, heads · head width)
        found.append(torch.cat([bare.entered, side_by_side, scores.logsumexp(-1).transpose(1, 2)], -1))
        return torch.zeros_like(query).transpose(1, 2), None  # nobody reads on

    handle = attends_by(_attention(layers[-1]), attend)
    layers[-1] = bare
    try:
        yield found
    finally:
        layers[-1] = bare.layer[0]
        handle.remove()


class _Bare(StandIn):
    """Runs a layer without its hooks, and notes the class tokens that enter."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer, returns_tuple=False)
        self.entered: Tensor = torch.empty(0)

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        self.entered = hidden_states[:, :1].float()
        return self.layer[0].forward(hidden_states, *args, **named)


@contextlib.contextmanager
def acting(layer: nn.Module, states: Tensor, width: int) -> Iterator[None]:
    """Let a last layer, called with class tokens and those put behind them, give its class tokens' outputs.

    Those of the other tokens are of no use; who put them in drops them.

    Args:
        layer: the layer.
        states: as :func:`noting` notes them, of the rows that the layer is called with.
        width: of the tower.
    """

    def attend(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, __: Tensor | None, **named: Any) -> Any:
        rows, heads, tokens, size = query.shape
        met = states[..., width : width + heads * size].view(rows, 1, heads, size).transpose(1, 2)
        own = states[..., width + heads * size :].transpose(1, 2).unsqueeze(-1)
        weights = torch.cat([own, _scores(query[:, :, :1], key[:, :, 1:], named)], -1).softmax(-1)
        with torch.autocast(query.device.type, enabled=False):
            met = weights[..., :1] * met + weights[..., 1:] @ value[:, :, 1:].float()
        return nn.functional.pad(met.transpose(1, 2), (0, 0, 0, 0, 0, tokens - 1)).to(value.dtype), None

    handle = attends_by(_attention(layer), attend)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def blanked(layer: nn.Module) -> Iterator[None]:
    """Blank, inside the block, all that a layer gives but its first token's."""

    def blank(_: nn.Module, __: Any, output: Any) -> Any:
        whole = output[0] if isinstance(output, tuple) else output
        first = nn.functional.pad(whole[:, :1], (0, 0, 0, whole.shape[1] - 1))
        return (first, *output[1:]) if isinstance(output, tuple) else first

    handle = layer.register_forward_hook(blank)
    try:
        yield
    finally:
        handle.remove()


def _scores(query: Tensor, key: Tensor, named: dict[str, Any]) -> Tensor:
    """Return how well queries meet keys, (rows, heads, queries, keys), float32."""
    scaling = named.get("scaling") or query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):
        scores: Tensor = query.float() @ key.float().transpose(2, 3) * scaling
    return scores


def is_known(layer: nn.Module) -> bool:
    """Say whether a layer has an attention that can be told what to attend by."""
    return any(map(asks_for_its_function, layer.modules()))


def _attention(layer: nn.Module) -> nn.Module:
    return next(filter(asks_for_its_function, layer.modules()))
