"""Conditional prompts (CoCoOp, arXiv 2203.05557) with the expert axis: learned words that each picture moves.

A small net, CoCoOp's *meta-net*, turns a picture's embedding x into an offset π(x) that is added to all of a text
prompt's words (section 3.2): so the words that a class is read in are others beside each picture, and generalise better
to classes that nobody has trained on. **Beside a picture an expert is a text prompt of that picture's own**: E experts
are E · rows text prompts, and texts come as so many groups. The image tower is touched by none: what it gives is kept.

The price is the paper's (its limitations): the tower of texts reads each pair of a picture and a class.

The net's last matrix starts at zero, so that an expert starts as the text prompt that the same seed draws, and as the
given words where there are any: π(x) = 0. (The paper says nothing of it; its code has torch's own start, whose random
bias is, with ViT-B/16, five times as large as the words.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.backbones import Backbone
from pitune.backbones.dual import joint_width
from pitune.errors import PituneError
from pitune.experts.binders import Handle
from pitune.experts.kind import Expert, Tensors
from pitune.experts.text_prompt import CONTEXT, LearnedWords
from pitune.experts.unified_prompt import linear
from pitune.experts.words import with_words

DOWN = ("net.down", "net.down_bias")  # (E, inner, the joint space's width), (E, inner)
UP = ("net.up", "net.up_bias")  # (E, the text tower's width, inner), (E, the text tower's width)
NARROWER = 16
"""How many times narrower than the joint space the net is inside (section 3.2)."""


class ConditionalPrompt(LearnedWords):
    """Learned words around each candidate's text, moved by the picture that it is held against."""

    kind: Literal["conditional_prompt"] = "conditional_prompt"
    tokens: int = Field(4, ge=1, description="learned words")
    peft_type: ClassVar[str] = "CONDITIONAL_PROMPT"
    parameter_names: ClassVar[tuple[str, ...]] = (CONTEXT, *DOWN, *UP)
    conditional: ClassVar[bool] = True

    def start(self, backbone: Backbone) -> Expert:
        """Return a text prompt's words, and a net that gives zero beside any picture.

        Raises:
            PituneError: the given words are more tokens than are learned, or the backbone is no dual encoder.
        """
        expert = super().start(backbone)
        ((_, held),) = expert.items()
        joint, width = joint_width(backbone.model), held[CONTEXT].shape[1]
        inner = max(1, joint // NARROWER)
        bound = 1 / math.sqrt(joint)  # as torch draws linear layers
        generator = torch.Generator().manual_seed(-1 - self.seed)  # which no words are drawn from
        held[DOWN[0]] = torch.empty(inner, joint).uniform_(-bound, bound, generator=generator)
        return {path: held | _zeros({DOWN[1]: (inner,), UP[0]: (width, inner), UP[1]: (width,)}) for path in expert}

    def beside(self, tensors: Tensors, examples: Tensor) -> Tensors:
        """Return the words of E · rows text prompts, v + π(x): (E · rows, tokens, width)."""
        context = tensors[CONTEXT]
        x = examples.view(len(context), -1, examples.shape[-1])  # (E, rows, joint width)
        offset = linear(torch.relu(linear(x, tensors, DOWN)), tensors, UP)  # (E, rows, width)
        return {CONTEXT: (context.unsqueeze(1) + offset.unsqueeze(2)).flatten(0, 1)}

    def bind_model(self, model: nn.Module, sites: Mapping[str, Callable[[], Tensors]]) -> list[Handle]:
        """Put the words into the texts.

        Where nobody has said beside which pictures, as with :func:`pitune.load`, these are the ones that the model has
        looked at last: texts come as equal groups, one for each. So the model's own forward is right for one picture
        with any texts.
        """
        ((path, tensors),) = sites.items()
        towers: Any = model
        seen: list[Tensor] = []  # the last pictures' embeddings, (pictures, joint width)

        def look(_: nn.Module, __: Any, output: Any) -> None:
            project = getattr(model, "visual_projection", nn.Identity())
            seen[:] = [nn.functional.normalize(project(output[1]), dim=-1)]

        def words() -> Tensor:
            held = tensors()
            if DOWN[0] not in held:
                return held[CONTEXT]
            if not seen:
                raise PituneError(f"a {self.kind} reads texts beside a picture; let the model look at one first")
            return self.beside(held, seen[0])[CONTEXT]

        return [*with_words(model, path, words, self.place), towers.vision_model.register_forward_hook(look)]

    def placed(self, expert: Expert, model: nn.Module) -> Expert:
        """Return ``expert`` as it is.

        Raises:
            PituneError: its net reads embeddings of another width than this model gives.
        """
        width = joint_width(model)
        for held in expert.values():
            if held[DOWN[0]].shape[-1] != width:
                found = held[DOWN[0]].shape[-1]
                raise PituneError(
                    f"made for another backbone, its net reads {found} numbers of a picture, this model gives {width}"
                )
        return expert


def _zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}
