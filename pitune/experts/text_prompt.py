"""Text prompts (CoOp, arXiv 2109.01134) with the expert axis: learned words that stand around every candidate's text.

They act in the tower that reads candidates, and pictures never meet them: what the image tower gives is kept. The
vectors are the same for all candidates, CoOp's *unified context*. Its *class-specific* contexts, vectors of each
class's own, are left out. Their shape would follow the task's number of classes, so that experts of unlike tasks could
share no pack, no mixture and no similarity. Even where two tasks have as many classes, mixing would average the vectors
of classes that have nothing in common, and classes that nobody has trained on would have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.backbones import Backbone, Site
from pitune.errors import PituneError
from pitune.experts.binders import Handle
from pitune.experts.kind import Expert, ExpertKind, Tensors
from pitune.experts.words import Place, with_words

CONTEXT = "context"  # (E, tokens, width)
SPREAD = 0.02
"""The standard deviation of a word's starting values, as in CoOp."""


class LearnedWords(ExpertKind):
    """What kinds share whose words stand before, around or after each candidate's text."""

    tokens: int = Field(16, ge=1, description="learned words")
    words: str | None = Field(
        None, description="the first of them start as these words, such as a photo of a; null: all start at random"
    )
    place: Place = Field("end", description="where the candidate's own text is: end, middle, front")
    neutral: ClassVar[bool] = False

    def sites(self, backbone: Backbone) -> list[Site]:
        """Return the embeddings of the tower that reads candidates' texts.

        Raises:
            PituneError: there is no such tower, or other towers or layers are named.
        """
        if self.layers is not None:
            raise PituneError(f"expert.layers: found {self.layers}; a {self.kind} is read by all layers; leave it out")
        return [embeddings_of(backbone, self.kind, self.towers)]

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` embeds token ids."""
        return isinstance(module, nn.Embedding)

    def start(self, backbone: Backbone) -> Expert:
        """Return the words that every expert starts from.

        Raises:
            PituneError: the given words are more tokens than are learned.
        """
        expert = super().start(backbone)
        if self.words is not None:
            ((path, held),) = expert.items()
            vectors = _embedded(backbone, path, self.words)
            if len(vectors) > self.tokens:
                raise PituneError(
                    f"expert.words: {self.words!r} are {len(vectors)} tokens; expert.tokens has room for {self.tokens}"
                )
            held[CONTEXT][: len(vectors)] = vectors
        return expert

    def initial(self, module: nn.Embedding, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the words from a narrow normal distribution."""
        return {CONTEXT: SPREAD * torch.randn(self.tokens, module.embedding_dim, generator=generator)}

    def bind(self, module: nn.Module, tensors: Callable[[], Tensors]) -> list[Handle]:
        """Do nothing: what reads the ids has to make room."""
        return []

    def bind_model(self, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]]) -> list[Handle]:
        """Put the words into the texts."""
        ((path, tensors),) = sites.items()
        return with_words(model, path, lambda: tensors()[CONTEXT], self.place)


class TextPrompt(LearnedWords):
    """The same learned words around all texts."""

    kind: Literal["text_prompt"] = "text_prompt"
    peft_type: ClassVar[str] = "TEXT_PROMPT"
    parameter_names: ClassVar[tuple[str, ...]] = (CONTEXT,)


def embeddings_of(backbone: Backbone, kind: str, towers: tuple[str, ...] | None) -> Site:
    """Return the embeddings of the tower that reads candidates' texts alone.

    Raises:
        PituneError: there is no such tower, or ``towers`` are others.
    """
    name = backbone.texts_tower
    if name == backbone.examples_tower:
        raise PituneError(
            f"expert.kind: {kind} learns words around candidates' texts, for which this backbone has no tower of their "
            "own; use a dual encoder"
        )
    if towers is not None and towers != (name,):
        raise PituneError(f"expert.towers: found {', '.join(towers)}; a {kind} acts in {name}; leave it out")
    reader: Any = backbone.model.get_submodule(backbone.towers[name].root)
    embeddings = reader.get_input_embeddings()
    path = next(path for path, module in backbone.model.named_modules() if module is embeddings)
    return Site(name, path, -1)


def _embedded(backbone: Backbone, path: str, words: str) -> Tensor:
    """Return the embeddings of words without what the tokenizer puts around every text: (tokens, width)."""
    ((text,), (nothing,)) = (backbone.encode_texts([one]) for one in (words, ""))
    ids = [token for token in text.content if token not in nothing.content]
    weight: Any = backbone.model.get_submodule(path).weight
    return weight.detach()[ids].float().cpu()  # type: ignore[no-any-return]
