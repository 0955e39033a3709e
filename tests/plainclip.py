"""CLIP with prompts, written out from the papers' equations, one row at a time: the prompt kinds' reference.

It shares no code with :mod:`pitune`, and of transformers' models takes the weights alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def layer(module: Any, x: Tensor, causal: bool) -> Tensor:
    """One layer of CLIP on (tokens, width): attention and feed-forward, each behind a norm and beside its input."""
    attention, heads = module.self_attn, module.self_attn.num_heads
    inner = module.layer_norm1(x)
    parts = (attention.q_proj(inner), attention.k_proj(inner), attention.v_proj(inner))
    query, key, value = (part.view(len(x), heads, -1).transpose(0, 1) for part in parts)  # (heads, tokens, head width)
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    if causal:
        scores = scores + torch.full((len(x), len(x)), float("-inf")).triu(1)
    met = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(x), -1)
    x = x + attention.out_proj(met)
    inner = module.mlp.fc1(module.layer_norm2(x))
    return x + module.mlp.fc2(module.mlp.activation_fn(inner))


def text(clip: Any, ids: list[int], context: Tensor | None = None, place: str = "end") -> Tensor:
    """The feature of one text, whose last id is its end, with learned words (CoOp, arXiv 2109.01134): (width,)."""
    model = clip.text_model
    x = model.embeddings.token_embedding(torch.tensor(ids))
    if context is not None:
        half = len(context) // 2
        x = {
            "end": lambda: torch.cat([x[:1], context, x[1:]]),
            "middle": lambda: torch.cat([x[:1], context[:half], x[1:-1], context[half:], x[-1:]]),
            "front": lambda: torch.cat([x[:-1], context, x[-1:]]),
        }[place]()
    x = x + model.embeddings.position_embedding.weight[: len(x)]
    for module in model.encoder.layers:
        x = layer(module, x, causal=True)
    return unit(clip.text_projection(model.final_layer_norm(x[-1])))


def image(clip: Any, pixels: Tensor, prompts: list[Tensor] | None = None, first: int = 0) -> Tensor:
    """The feature of one picture (3, side, side), with learned tokens (VPT, arXiv 2203.12119): (width,).

    Args:
        clip: the model.
        pixels: the picture.
        prompts: of one set of tokens, those that enter layer ``first`` (shallow); of several, each layer's (deep).
        first: the lowest layer with tokens.
    """
    model = clip.vision_model
    x = model.pre_layrnorm(model.embeddings(pixels[None])[0])
    own = len(x)
    for number, module in enumerate(model.encoder.layers):
        which = number - first
        if prompts and which == 0:
            x = torch.cat([x, prompts[0]])
        elif prompts and len(prompts) > 1 and which > 0:
            x = torch.cat([x[:own], prompts[which]])
        x = layer(module, x, causal=False)
    return unit(clip.visual_projection(model.post_layernorm(x[0])))


def unified(held: dict[str, Tensor]) -> Tensor:
    """Torch's own layer of a transformer, norms in front, with a unified prompt's weights: (vectors, width)."""
    width = held["vectors"].shape[1]
    net = nn.TransformerEncoderLayer(width, 1, 4 * width, 0.0, "gelu", norm_first=True, batch_first=True)
    state = {
        "self_attn.in_proj_weight": torch.cat([held[f"net.{name}"] for name in ("query", "key", "value")]),
        "self_attn.in_proj_bias": torch.zeros(3 * width),
        "self_attn.out_proj.weight": held["net.output"],
        "self_attn.out_proj.bias": torch.zeros(width),
        **{"linear1.weight": held["net.up"], "linear1.bias": held["net.up_bias"]},
        **{"linear2.weight": held["net.down"], "linear2.bias": held["net.down_bias"]},
        **{"norm1.weight": held["net.norm1"], "norm1.bias": held["net.norm1_bias"]},
        **{"norm2.weight": held["net.norm2"], "norm2.bias": held["net.norm2_bias"]},
    }
    net.load_state_dict(state)
    found: Tensor = net.train()(held["vectors"][None])[0]  # training mode: its fast path is no reference
    return found


def unit(x: Tensor) -> Tensor:
    """Bring a vector to length 1."""
    return x / x.square().sum().sqrt()
