"""Attention with a prefix, its formula written out: what pitune's keys and values are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The projections' names, by class; ModernBERT has three in one, and BERT's last one is another module's.
NAMES: dict[str, tuple[str, str, str, str | None]] = {
    "BertSelfAttention": ("query", "key", "value", None),
    "RobertaSelfAttention": ("query", "key", "value", None),
    "DistilBertSelfAttention": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "MPNetSelfAttention": ("q", "k", "v", "o"),
    "ViTAttention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "CLIPAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "ModernBertAttention": ("Wqkv", "Wqkv", "Wqkv", "Wo"),
}


class PlainAttention(nn.Module):
    """An attention of two heads for one row that is not padded, with a prefix.

    Args:
        module: whose projections it takes.
        keys: (2, prefix, head width).
        values: the same shape.
    """

    def __init__(self, module: nn.Module, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.module = module
        self.held = (keys, values)  # in a tuple: parameters of somebody else

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        is_causal: bool = False,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Return what the attention gives, (1, tokens, width)."""
        keys, values = self.held
        count, width = keys.shape[1:]
        names = NAMES[type(self.module).__name__]
        found = [getattr(self.module, name)(hidden_states)[0] for name in names[:3]]
        if names[0] == names[1]:
            found = [part.chunk(3, -1)[index] for index, part in enumerate(found)]
        q, k, v = (part.view(len(part), 2, width).transpose(0, 1) for part in found)  # (heads, tokens, head width)
        if position_embeddings is not None:
            cosine, sine = (angle[0] for angle in position_embeddings)
            half = width // 2
            q, k = (x * cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * sine for x in (q, k))
        scores = q @ torch.cat([keys, k], 1).transpose(1, 2) / width**0.5
        own = scores[..., count:]
        if position_bias is not None:
            own = own + position_bias[0]
        if is_causal:
            own = own + torch.full(own.shape[1:], -torch.inf).triu(1)
        elif attention_mask is not None:  # of one row: what is too far
            mask = attention_mask[0]
            own = own.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else own + mask
        scores = torch.cat([scores[..., :count], own], -1)
        mixed = (scores.softmax(-1) @ torch.cat([values, v], 1)).transpose(0, 1).flatten(1)[None]
        return (getattr(self.module, names[3])(mixed) if names[3] else mixed), None
