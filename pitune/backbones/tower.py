"""What a tower is, and what towers read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Tower(NamedTuple):
    """A stack of layers: the path of its ``nn.ModuleList`` in the model, how many layers, and its output's width.

    ``root`` is the path of the part of the model that the stack is in with its embeddings; of a model of one tower "".
    """

    name: str
    stack: str
    depth: int
    width: int
    root: str = ""


class Site(NamedTuple):
    """A module of a tower: its path in the model and the layer that it is part of; -1: of none, as embeddings are.

    Who acts at a layer itself puts tokens among its input, and touches nothing within.
    """

    tower: str
    path: str
    layer: int


@dataclass(frozen=True)
class Encoded:
    """One thing that one tower reads, not padded.

    Attributes:
        tower: who reads it.
        content: what it is, as the backbone that encoded it wants it (token ids, a preprocessed picture).
        cost: how much there is to compute, in tokens or patches; batches are made of rows of like cost.
        key: the hash of ``content``.
        again: whether it is read more than once: what no expert touches of it is then kept.
    """

    tower: str
    content: Any
    cost: int
    key: bytes
    again: bool = True

    @classmethod
    def of_ids(cls, tower: str, ids: Sequence[int]) -> Encoded:
        """Encode token ids."""
        return cls(tower, tuple(ids), len(ids), hashlib.blake2b(repr(ids).encode(), digest_size=16).digest())


@dataclass(frozen=True)
class Inputs:
    """A padded batch for one tower.

    Attributes:
        tower: who reads it.
        tensors: what the tower's model takes, each (rows, …).
        first: the lowest layer with an expert; or ``CLASS_TOKEN``.
        hidden: what enters that layer, (rows, tokens, width); None where it is the lowest of all.
            For ``CLASS_TOKEN`` the states of :mod:`pitune.backbones.classtoken`.
        embeddings: the whole tower's output, (rows, width), where no expert touches the tower.
    """

    tower: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    first: int = 0
    hidden: Tensor | None = None
    embeddings: Tensor | None = None
