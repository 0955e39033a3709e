"""Everything that is registered, in a tiny random form: what the conformance tests run over.

A registered expert kind or objective is here by itself, with its defaults. A registered family of backbones needs a
tiny model: a function in :data:`TINY`.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tinymodel import SHAPES, WORDS, make_task, open_encoder, random_expert, save_encoder
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from pitune.backbones import Backbone, Encoded, Inputs, Tower
from pitune.errors import PituneError
from pitune.experts import KINDS, Expert, ExpertKind
from pitune.objectives import OBJECTIVES, Objective, Row, Rows
from pitune.tasks.task import Example, Task

LAYERS, WIDTH, SIDE = 3, 32, 12
LAST = WORDS.index(WORDS[-1]) + 6  # CLIP's text tower pools at the largest number


class Pictures(Backbone):
    """A tiny CLIP of two towers. An example's picture is drawn from its text."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 48}
        text = {**shape, "vocab_size": LAST + 1, "max_position_embeddings": 32}
        text |= {"eos_token_id": LAST, "bos_token_id": 1, "pad_token_id": 0}
        image = {**shape, "image_size": SIDE, "patch_size": 4}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=WIDTH))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.15)
        towers = [Tower(name, f"{name}_model.encoder.layers", LAYERS, WIDTH) for name in ("vision", "text")]
        super().__init__(model, towers, "vision", "text", "fp32")
        self.try_out(self.encode([Example("", "w1", 0)])[0])
        self.try_out(self.encode_texts(["w1"])[0])

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Draw each example's picture."""
        keys = [hashlib.sha256(example.text.encode()).digest() for example in examples]
        generators = [torch.Generator().manual_seed(int.from_bytes(key[:6], "big")) for key in keys]
        pictures = [torch.randn(3, SIDE, SIDE, generator=generator) for generator in generators]
        return [
            Encoded("vision", picture, (SIDE // 4) ** 2 + 1, key) for picture, key in zip(pictures, keys, strict=True)
        ]

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the words' numbers between a first and a last one."""
        return [Encoded.of_ids("text", [1, *(2 + WORDS.index(word) for word in text.split()), LAST]) for text in texts]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Stack pictures, pad texts."""
        if rows[0].tower == "vision":
            return {"pixel_values": torch.stack([row.content for row in rows])}
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row.content) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def embed(self, inputs: Inputs) -> Tensor:
        """Run a tower and its projection."""
        features = self.model.get_image_features if inputs.tower == "vision" else self.model.get_text_features
        found: Tensor = features(**inputs.tensors).pooler_output
        return found


def _text(family: str) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        return open_encoder(save_encoder(Path(folder), family))


TINY: dict[str, dict[str, Callable[[], Backbone]]] = {
    "text": {family: functools.partial(_text, family) for family in SHAPES},
}
"""By the kind of a registered family of backbones: tiny random ones, by a name."""
TOWERS: dict[str, list[tuple[str, ...] | None]] = {"pictures": [("vision",), ("text",), ("vision", "text")]}
"""In which towers experts sit, by a backbone's name; elsewhere in the one that reads examples."""
_ALL = {name: make for made in TINY.values() for name, make in made.items()} | {"pictures": Pictures}


@functools.cache
def opened(name: str) -> Backbone:
    """Open a tiny backbone, once."""
    return _ALL[name]()


@dataclass(frozen=True)
class Member:
    """A kind on a backbone, for an objective."""

    name: str
    kind: ExpertKind
    objective: Objective

    def __str__(self) -> str:
        towers = [] if self.kind.towers is None else ["+".join(self.kind.towers)]
        objective = [] if len(OBJECTIVES) == 1 else [self.objective.kind]
        return "-".join([self.kind.kind, self.name, *towers, *objective])

    @property
    def backbone(self) -> Backbone:
        """The backbone; a test is skipped where the kind finds nothing to act on there."""
        backbone = opened(self.name)
        try:
            self.kind.sites(backbone)
            self.objective.prepare(backbone, TASKS[0])
        except PituneError as error:
            pytest.skip(str(error))
        return backbone

    def experts(self, count: int) -> list[Expert]:
        """Return experts as after training."""
        return [random_expert(self.kind, self.backbone, seed) for seed in range(count)]

    def rows(self, task: Task) -> Rows:
        """Return the rows of a task's test split."""
        return Rows(self.backbone, self.objective, [(task, task.splits["test"], 1.0)])

    def groups(self) -> list[list[Row]]:
        """Return three groups of two rows, of tasks with unlike candidates."""
        return [self.rows(task).take([0, 3]) for task in TASKS]


TASKS = [make_task("one", 3, 4), make_task("two", 2, 4, longest=5), make_task("three", 4, 4)]
MEMBERS = [
    Member(name, kind(layers=2, towers=towers), objective())
    for objective in OBJECTIVES
    for kind in KINDS
    for name in _ALL
    for towers in TOWERS.get(name, [None])
]
every_member = pytest.mark.parametrize("member", MEMBERS, ids=str)
