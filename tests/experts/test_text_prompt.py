"""Text prompts against CoOp's equations, and against what a BERT and a SigLIP give for vectors in place of ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plainclip
import pytest
import torch
from plainclip import unit
from tinydual import make_pictures, open_dual, plain_dual, save_dual
from tinymodel import random_expert
from torch import Tensor, nn

from pitune.backbones.dual import DualBackbone
from pitune.backbones.text import TextBackbone
from pitune.errors import PituneError
from pitune.experts import Bank, TextPrompt
from pitune.objectives import Match, Rows
from pitune.tasks.task import Task

NAMES = ["w1", "w2 w3 w4", "w5 w6"]  # of unlike length


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> DualBackbone:
    return open_dual(save_dual(tmp_path_factory.mktemp("clip"), "clip"))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


def read(backbone: DualBackbone, kind: TextPrompt, experts: list[Any]) -> Tensor:
    """Embed the names with each expert: (experts, names, width)."""
    rows = backbone.encode_texts(NAMES)
    with Bank(kind, experts).attached(backbone.model), torch.no_grad():
        found = backbone(backbone.inputs(rows * len(experts), backbone.firsts(list(experts[0]))))
    return found.view(len(experts), len(NAMES), -1)


@pytest.mark.parametrize("place", ["end", "middle", "front"])
def test_it_equals_coop(clip: DualBackbone, place: Any) -> None:
    kind = TextPrompt(tokens=5, place=place)
    experts = [random_expert(kind, clip, seed, size=0.5) for seed in range(2)]
    found = read(clip, kind, experts)
    for expert, mine in zip(experts, found, strict=True):
        (held,) = expert.values()
        for row, vector in zip(clip.encode_texts(NAMES), mine, strict=True):
            expected = plainclip.text(clip.model, list(row.content), held["context"], place)
            torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)


def test_given_words_are_what_the_text_would_have_been(clip: DualBackbone) -> None:
    """At its start a prompt of the words of a template reads a name as the template does; what is left is random."""
    kind = TextPrompt(tokens=2, words="w7 w8")
    found = read(clip, kind, [kind.start(clip)])[0]
    rows = clip.encode_texts([f"w7 w8 {name}" for name in NAMES])
    torch.testing.assert_close(found, clip(clip.inputs(rows, {})), atol=1e-5, rtol=1e-4)
    (longer,) = TextPrompt(tokens=4, words="w7 w8").start(clip).values()
    (without,) = TextPrompt(tokens=4).start(clip).values()
    assert torch.equal(longer["context"][2:], without["context"][2:])
    assert not torch.equal(longer["context"][:2], without["context"][:2])


def test_a_bert_and_a_siglip_read_them(tmp_path: Path) -> None:
    kind = TextPrompt(tokens=3)
    for family in ("vision-text-dual-encoder", "siglip"):
        backbone = open_dual(save_dual(tmp_path / family, family))
        expert = random_expert(kind, backbone, 1, size=0.5)
        (found,) = read(backbone, kind, [expert])
        (held,) = expert.values()
        model = plain_dual(tmp_path / family)
        for row, vector in zip(backbone.encode_texts(NAMES), found, strict=True):
            words = model.text_model.get_input_embeddings()(torch.tensor(row.content))
            expected = (_bert if family != "siglip" else _siglip)(model, words, held["context"])
            torch.testing.assert_close(vector, unit(expected.detach()), atol=1e-5, rtol=1e-4)


def _bert(model: Any, words: Tensor, context: Tensor) -> Tensor:
    whole = torch.cat([words[:1], context, words[1:]])
    found: Tensor = model.text_projection(model.text_model(inputs_embeds=whole[None]).pooler_output[0])
    return found


def _siglip(model: Any, words: Tensor, context: Tensor) -> Tensor:
    """There is no token in front, and what is read at the end is the last place of all."""
    text = model.text_model
    x = torch.cat([context, words])[: len(words)] + text.embeddings.position_embedding.weight
    for layer in text.encoder.layers:
        x = plainclip.layer(layer, x, causal=False)
    found: Tensor = text.head(text.final_layer_norm(x[-1]))
    return found


def test_pictures_are_looked_at_once(clip: DualBackbone, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training losses are those of CoOp; the image tower runs for the first batch only."""
    kind, objective = TextPrompt(tokens=3), Match(scale=10.0, live_template="{} w9")
    experts = [random_expert(kind, clip, seed) for seed in range(2)]
    rows = Rows(clip, objective, [(task, task.splits["train"], 1.0)])
    firsts = clip.firsts(list(experts[0]))
    objective.collate(clip, firsts, [rows.take(range(len(rows)))])
    monkeypatch.setattr(clip, "_pixels", None)  # nothing is decoded any more
    batch = objective.collate(clip, firsts, [rows.take([0, 3]), rows.take([1, 4])])
    losses = objective.losses(clip, Bank(kind, experts), batch)
    monkeypatch.undo()
    sentences = clip.encode_texts([f"{text} w9" for text in task.label_texts])
    for index, (expert, chosen) in enumerate(zip(experts, ([0, 3], [1, 4]), strict=True)):
        (held,) = expert.values()
        names = torch.stack([plainclip.text(clip.model, list(one.content), held["context"]) for one in sentences])
        for place, row in enumerate(chosen):
            example = task.splits["train"][row]
            assert example.picture is not None
            feature = plainclip.image(clip.model, clip._pixels(example.picture))
            expected = nn.functional.cross_entropy(10.0 * names @ feature, torch.tensor(example.label))
            torch.testing.assert_close(losses[index, place], expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_is_one_line(clip: DualBackbone, tiny: TextBackbone) -> None:
    for kind, backbone, said in (
        (TextPrompt(), tiny, "use a dual encoder"),
        (TextPrompt(layers=2), clip, "expert.layers: found 2"),
        (TextPrompt(towers=("image",)), clip, "expert.towers: found image"),
        (TextPrompt(tokens=1, words="w7 w8"), clip, "'w7 w8' are 2 tokens; expert.tokens has room for 1"),
    ):
        with pytest.raises(PituneError) as error:
            kind.start(backbone)
        assert said in str(error.value) and "\n" not in str(error.value)
    kind = TextPrompt(tokens=28)  # of 32 positions
    with pytest.raises(PituneError, match="28 and 5 of a text are more than the backbone's 32 positions"):
        read(clip, kind, [kind.start(clip)])
