"""Unified prompts (UPT, arXiv 2210.07225) with the expert axis: one set of vectors, shared by both towers.

A small net lets the vectors see each other; then a part of them becomes learned words of the candidates' texts, the
rest tokens of the pictures' tower. So a tower's prompt learns from the other's, too (MVLPT, arXiv 2211.11720, section
3.2). The net starts as the identity: its branches' last matrices are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.backbones import Backbone, Site
from pitune.errors import PituneError
from pitune.experts.binders import Handle, with_tokens
from pitune.experts.kind import ExpertKind, Tensors
from pitune.experts.text_prompt import SPREAD, embeddings_of
from pitune.experts.visual_prompt import AFTER_CLASS, layers_from, width_of
from pitune.experts.words import with_words

VECTORS = "vectors"  # (E, 2 · tokens, width): the words' first, then the pictures' tokens
ATTENTION = ("net.query", "net.key", "net.value", "net.output")  # (E, width, width)
FEED_FORWARD = ("net.up", "net.up_bias", "net.down", "net.down_bias")
NORMS = ("net.norm1", "net.norm1_bias", "net.norm2", "net.norm2_bias")  # (E, width)
WORDS = ("words.weight", "words.bias")  # (E, the text tower's width, width), …
TOKENS = ("tokens.weight", "tokens.bias")  # (E, the image tower's width, width), …
INNER = 4
"""How many times as wide as the vectors the feed-forward net is."""


class UnifiedPrompt(ExpertKind):
    """Vectors that a small net turns into learned words of texts and learned tokens of pictures."""

    kind: Literal["unified_prompt"] = "unified_prompt"
    tokens: int = Field(4, ge=1, description="learned words, and as many learned tokens of the other tower")
    width: int = Field(128, ge=1, description="of the shared vectors")
    net: Literal["transformer", "mlp", "identity"] = Field(
        "transformer", description="a layer with one head, its feed-forward part alone, or nothing"
    )
    peft_type: ClassVar[str] = "UNIFIED_PROMPT"
    parameter_names: ClassVar[tuple[str, ...]] = (VECTORS, *ATTENTION, *FEED_FORWARD, *NORMS, *WORDS, *TOKENS)
    neutral: ClassVar[bool] = False

    def sites(self, backbone: Backbone) -> list[Site]:
        """Return the embeddings of the tower that reads texts, and the lowest layer with experts of the other one.

        Raises:
            PituneError: there are no two towers, or others are named.
        """
        site = embeddings_of(backbone, self.kind, None)
        both = (backbone.examples_tower, backbone.texts_tower)
        if self.towers is not None and set(self.towers) != set(both):
            raise PituneError(
                f"expert.towers: found {', '.join(self.towers)}; a {self.kind} acts in both; leave it out"
            )
        tower = backbone.towers[backbone.examples_tower]
        lowest = self.first_layer(tower.depth)
        return [site, Site(tower.name, f"{tower.stack}.{lowest}", lowest)]

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` embeds token ids, or is a layer of a stack."""
        return isinstance(module, nn.Embedding) or path.rpartition(".")[2].isdigit()

    def initial(self, module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the vectors and what brings them to a tower's width, so that words start as a text prompt's do."""
        width, spread = self.width, 1 / math.sqrt(self.width)

        def drawn(*shape: int) -> Tensor:
            return spread * torch.randn(*shape, generator=generator)

        if not isinstance(module, nn.Embedding):
            wide = width_of(module)
            return {TOKENS[0]: drawn(wide, width), TOKENS[1]: torch.zeros(wide)}
        held = {VECTORS: SPREAD * torch.randn(2 * self.tokens, width, generator=generator)}
        if self.net == "transformer":
            held |= {name: drawn(width, width) for name in ATTENTION[:3]} | {ATTENTION[3]: torch.zeros(width, width)}
            held |= {NORMS[0]: torch.ones(width), NORMS[1]: torch.zeros(width)}
        if self.net != "identity":
            shapes = ((INNER * width, width), (INNER * width,), (width, INNER * width), (width,))
            held |= {name: torch.zeros(shape) for name, shape in zip(FEED_FORWARD, shapes, strict=True)}
            held[FEED_FORWARD[0]] = drawn(*shapes[0])
            held |= {NORMS[2]: torch.ones(width), NORMS[3]: torch.zeros(width)}
        wide = module.embedding_dim
        return held | {WORDS[0]: drawn(wide, width), WORDS[1]: torch.zeros(wide)}

    def names_at(self, held: Tensors) -> set[str]:
        """Return the names of what brings vectors to a tower's width; and, with the vectors, those of the net."""
        if TOKENS[0] in held or TOKENS[1] in held:
            return set(TOKENS)
        net = {"transformer": (*ATTENTION, *NORMS, *FEED_FORWARD), "mlp": (*NORMS[2:], *FEED_FORWARD), "identity": ()}
        return {VECTORS, *net[self.net], *WORDS}

    def bind(self, module: nn.Module, tensors: Callable[[], Tensors]) -> list[Handle]:
        """Do nothing: what one tower gets comes from what lies with the other."""
        return []

    def bind_model(self, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]]) -> list[Handle]:
        """Put the words into the texts and the tokens among the pictures' layers."""
        (text,) = (path for path in sites if isinstance(model.get_submodule(path), nn.Embedding))
        (image,) = (path for path in sites if path != text)

        def words() -> Tensor:
            held = sites[text]()
            return linear(seen(held)[:, : self.tokens], held, WORDS)

        def tokens() -> Tensor:
            return linear(seen(sites[text]())[:, self.tokens :], sites[image](), TOKENS)

        return [
            *with_words(model, text, words, "end"),
            *with_tokens(layers_from(model, image), tokens, AFTER_CLASS),
        ]


def seen(held: Tensors) -> Tensor:
    """Return the vectors after they have seen each other: (E, 2 · tokens, width).

    A layer of a transformer with its norms in front and one head: U' = U + SA(LN(U)), Û = U' + FFN(LN(U')).
    """
    u = held[VECTORS]
    if ATTENTION[0] in held:
        x = _normed(u, held, NORMS[:2])
        query, key, value = (torch.bmm(x, held[name].transpose(1, 2)) for name in ATTENTION[:3])
        met = torch.softmax(torch.bmm(query, key.transpose(1, 2)) / math.sqrt(u.shape[-1]), -1)
        u = u + torch.bmm(torch.bmm(met, value), held[ATTENTION[3]].transpose(1, 2))
    if FEED_FORWARD[0] in held:
        inner = nn.functional.gelu(linear(_normed(u, held, NORMS[2:]), held, FEED_FORWARD[:2]))
        u = u + linear(inner, held, FEED_FORWARD[2:])
    return u


def _normed(x: Tensor, held: Tensors, names: tuple[str, ...]) -> Tensor:
    weight, bias = (held[name].unsqueeze(1) for name in names)
    return nn.functional.layer_norm(x, x.shape[-1:]) * weight + bias


def linear(x: Tensor, held: Tensors, names: tuple[str, ...]) -> Tensor:
    """Return x Wᵀ + b for each expert, (E, rows, output width), with the weight and the bias of these ``names``."""
    weight, bias = (held[name] for name in names)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
