"""Learned words among a text's own: how text prompts act on a model that reads token ids.

They get places of their own, as words have: what comes after them moves on, masks and positions follow, and the model
finds the end of the text where it has moved to (CoOp, arXiv 2109.01134, figure 2).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pitune.errors import PituneError
from pitune.experts.binders import Handle, named_arguments, per_row

Place = Literal["end", "middle", "front"]
"""Where a text's own words are: after the learned words, in their middle, before them."""


def with_words(model: nn.Module, path: str, words: Callable[[], Tensor], place: Place) -> list[Handle]:
    """Put learned words into the texts that a model reads.

    Args:
        model: a Hugging Face model.
        path: of the embeddings of its token ids.
        words: gives (E, count, width) when asked, once a pass; rows come as E equal groups.
        place: where the text's own words are.

    Raises:
        PituneError: no part of the model reads token ids with a mask.
    """
    reader, embeddings = _reader(model, path), model.get_submodule(path)
    state = _Words(words, place)
    return [
        reader.register_forward_pre_hook(state.enter, with_kwargs=True),
        embeddings.register_forward_hook(state.write),
    ]


def _reader(model: nn.Module, path: str) -> nn.Module:
    """Return the innermost module around ``path`` that takes token ids and their mask: a tower with its pooling."""
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if {"input_ids", "attention_mask"} <= set(inspect.signature(module.forward).parameters):
            return module
    raise PituneError(f"{type(model).__name__} has no part that reads token ids")


class _Words:
    """The two hooks: one makes room among the ids, the other writes the words' vectors there."""

    def __init__(self, words: Callable[[], Tensor], place: Place) -> None:
        self.words, self.place = words, place
        self.vectors = self.learned = torch.empty(0)

    def enter(self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Make room: the first id stands in for a word, for it is neither the end of a text nor padding."""
        given = named_arguments(reader, args, kwargs)
        ids, mask = given["input_ids"], given.get("attention_mask")
        words = self.words()
        if len(ids) % len(words):
            raise PituneError(f"{len(ids)} texts are no {len(words)} equal groups, one for each set of learned words")
        self.vectors = per_row(words, len(ids))  # (rows, count, width)
        count = self.vectors.shape[1]
        order = _order(ids, mask, count, self.place, reader.config)
        self.learned = order - ids.shape[1]  # (rows, tokens), which word stands there; negative: none
        given["input_ids"] = torch.cat([ids, ids[:, :1].expand(-1, count)], 1).gather(1, order)
        for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
            if given.get(name) is not None:
                own = given[name]
                given[name] = torch.cat([own, own.new_full((len(own), count), value)], 1).gather(1, order)
        return (), given

    def write(self, _: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Write the words into what the embeddings give, (rows, tokens, width)."""
        which = self.learned.unsqueeze(-1).expand_as(y)
        return torch.where(which >= 0, self.vectors.to(y.dtype).gather(1, which.clamp(min=0)), y)


def _order(ids: Tensor, mask: Tensor | None, count: int, place: Place, config: Any) -> Tensor:
    """Return for each new place which of the ids, or (after those) which of the words stands there: (rows, tokens).

    Raises:
        PituneError: a text and the words are more than the model has positions for.
    """
    rows, tokens = ids.shape
    start = 0 if config.model_type.startswith("siglip") else 1  # SigLIP's texts have no token in front
    # Without a mask, texts are filled up to one length, after their end.
    end = (ids == config.eos_token_id).int().argmax(1) if mask is None else mask.sum(1) - 1
    before = {"end": count, "middle": count // 2, "front": 0}[place]  # words in front of the text's own
    cuts = torch.where(torch.arange(count, device=ids.device) < before, start, end.unsqueeze(1))  # (rows, count)
    places = torch.cat([torch.arange(tokens, device=ids.device).expand(rows, -1), cuts - 0.5], 1)
    order = places.argsort(dim=1, stable=True)
    most = config.max_position_embeddings
    lost = order[:, most:]
    if lost.numel() and bool((lost <= end.unsqueeze(1)).any() or (lost >= tokens).any()):
        raise PituneError(
            f"expert.tokens: {count} and {int(end.max()) + 1} of a text are more than the backbone's {most} positions"
        )
    return order[:, :most]
