"""Conditional prompts against CoCoOp's equations, one pair of a picture and a class at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plainclip
import pytest
import torch
from tinydual import make_pictures, open_dual, plain_dual, save_dual, with_pictures
from tinymodel import make_task, random_expert
from torch import Tensor, nn

import pitune
from pitune.backbones.dual import DualBackbone
from pitune.backbones.text import TextBackbone
from pitune.embedding.fisher import fishers
from pitune.errors import PituneError
from pitune.experts import Bank, ConditionalPrompt, Expert, TextPrompt
from pitune.experts.checkpoint import to_files
from pitune.objectives import Match, Rows
from pitune.tasks.task import Example, Task

KIND, MATCH = ConditionalPrompt(tokens=3), Match(scale=10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dual(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="module")
def clip(folder: Path) -> DualBackbone:
    return open_dual(folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    pictures = tmp_path_factory.mktemp("pictures")
    return [make_pictures(pictures), with_pictures(make_task("more", 5, 6), pictures)]


def context(held: dict[str, Tensor], x: Tensor) -> Tensor:
    """The words beside a picture whose feature is x: v_m + π(x) (CoCoOp, section 3.2)."""
    inner = torch.relu(held["net.down"] @ x + held["net.down_bias"])
    return held["context"] + (held["net.up"] @ inner + held["net.up_bias"])


def scores(clip: DualBackbone, held: dict[str, Tensor], task: Task, example: Example) -> Tensor:
    """The cosines of a picture with its classes: (classes,)."""
    assert example.picture is not None
    x = plainclip.image(clip.model, clip._pixels(example.picture)).detach()
    rows = clip.encode_texts(task.label_texts)
    return torch.stack([plainclip.text(clip.model, list(row.content), context(held, x)) @ x for row in rows])


def loss(clip: DualBackbone, held: dict[str, Tensor], task: Task, example: Example) -> Tensor:
    """The loss of one picture."""
    return nn.functional.cross_entropy(10.0 * scores(clip, held, task, example), torch.tensor(example.label))


def moved(clip: DualBackbone, seed: int) -> Expert:
    """An expert whose net tells pictures from each other."""
    return random_expert(KIND, clip, seed, size=0.5)


@pytest.mark.parametrize("at_once", [64, 5])
def test_losses_and_gradients_are_cocoops(
    clip: DualBackbone, tasks: list[Task], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed, with rows of several tasks in a group; in one part, and class by class with each part run again."""
    monkeypatch.setattr(DualBackbone, "rows_at_once", at_once)
    experts = [moved(clip, seed) for seed in range(2)]
    rows = Rows(clip, MATCH, [(task, task.splits["train"], 1.0) for task in tasks])
    firsts = clip.firsts(list(experts[0]))
    assert firsts == {"text": 0}, "pictures are looked at once"
    chosen = [[0, 7, 10], [9, 6, 8]]  # the first six are the first task's
    batch = MATCH.collate(clip, firsts, [rows.take(some) for some in chosen])
    bank = Bank(KIND, experts)
    found = MATCH.losses(clip, bank, batch)
    found.sum().backward()  # type: ignore[no-untyped-call]
    for index, expert in enumerate(experts):
        ((path, tensors),) = expert.items()
        held = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        expected = torch.stack(
            [loss(clip, held, tasks[row // 6], tasks[row // 6].splits["train"][row % 6]) for row in chosen[index]]
        )
        torch.testing.assert_close(found[index], expected, atol=1e-4, rtol=1e-4)
        gradients = torch.autograd.grad(expected.sum(), list(held.values()))
        (site,) = (site for name, site in bank.named_sites() if name == path)
        for (name, parameter), gradient in zip(site.tensors().items(), gradients, strict=True):
            assert name in held and parameter.grad is not None
            torch.testing.assert_close(parameter.grad[index], gradient, atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(MATCH.losses(clip, bank.only([0, 1]), batch), found, atol=1e-5, rtol=1e-5)


def test_fisher_in_parts_is_each_pictures(
    clip: DualBackbone, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both kinds of labels from one pass, whose parts are run again for each."""
    monkeypatch.setattr(DualBackbone, "rows_at_once", 3)
    expert, task = moved(clip, 1), tasks[1]
    rows = Rows(clip, MATCH, [(task, task.splits["train"], 1.0)])
    empirical, true = fishers(clip, KIND, MATCH, expert, rows, ("empirical", "true"), batch=3)
    ((path, tensors),) = expert.items()
    held = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in held.items()}
    for example in task.splits["train"]:
        gradients = torch.autograd.grad(loss(clip, held, task, example), list(held.values()))
        for name, gradient in zip(held, gradients, strict=True):
            total[name] += gradient.square() / len(rows)
    for name, expected in total.items():
        torch.testing.assert_close(empirical[path][name], expected, atol=1e-4 * float(expected.max()), rtol=1e-3)
        assert not torch.allclose(true[path][name], expected)


def test_it_starts_as_a_text_prompt(clip: DualBackbone, tasks: list[Task]) -> None:
    """Of the same seed, or the same words."""
    rows = Rows(clip, MATCH, [(tasks[0], tasks[0].splits["train"], 1.0)])
    for words in (None, "w7 w8"):
        kinds = [kind(tokens=3, words=words) for kind in (ConditionalPrompt, TextPrompt)]
        starts = [kind.start(clip) for kind in kinds]
        batch = MATCH.collate(clip, clip.firsts(list(starts[0])), [rows.take([0, 3])])
        found = [MATCH.losses(clip, Bank(kind, [start]), batch) for kind, start in zip(kinds, starts, strict=True)]
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_a_plain_model_reads_texts_beside_the_picture_that_it_sees(
    clip: DualBackbone, folder: Path, tasks: list[Task], tmp_path: Path
) -> None:
    expert, task = moved(clip, 1), tasks[0]
    (held,) = expert.values()
    for name, content in to_files(KIND, expert, "tiny").items():
        (tmp_path / name).write_bytes(content)
    model: Any = pitune.load(plain_dual(folder), tmp_path)
    texts = clip.collate(clip.encode_texts(task.label_texts))
    with pytest.raises(PituneError, match="a conditional_prompt reads texts beside a picture; let the model look at"):
        model.get_text_features(**texts)
    examples = task.splits["test"][:2]
    for example in examples:
        logits = model(**texts, **clip.collate(clip.encode([example]))).logits_per_image[0]
        expected = model.logit_scale.exp() * scores(clip, held, task, example)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    pictures = model.get_image_features(**clip.collate(clip.encode(examples))).pooler_output
    twice = {name: tensor.repeat(2, 1) for name, tensor in texts.items()}  # a group for each picture
    found = nn.functional.normalize(model.get_text_features(**twice).pooler_output, dim=-1).view(2, 2, -1)
    cosines = torch.einsum("pcw,pw->pc", found, nn.functional.normalize(pictures, dim=-1))
    expected = torch.stack([scores(clip, held, task, example) for example in examples])
    torch.testing.assert_close(cosines, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(PituneError, match="3 texts are no 2 equal groups"):
        model.get_text_features(**{name: tensor[:3] for name, tensor in twice.items()})


def test_a_siglip_has_no_projection(tmp_path: Path, tasks: list[Task]) -> None:
    """What its tower of pictures gives is the joint space's."""
    backbone = open_dual(save_dual(tmp_path / "siglip", "siglip"))
    rows = Rows(backbone, MATCH, [(tasks[0], tasks[0].splits["train"], 1.0)])
    expert = moved(backbone, 1)
    bank = Bank(KIND, [expert])
    batch = MATCH.collate(backbone, backbone.firsts(list(expert)), [rows.take([0, 3])])
    texts = backbone.encode_texts(tasks[0].label_texts)
    with torch.no_grad():
        found = MATCH.logits(backbone, bank, batch)[0]
        for place, row in enumerate((0, 3)):
            example = tasks[0].splits["train"][row]
            with bank.attached(backbone.model):  # as on a plain model: beside what it has seen last
                x = backbone(backbone.inputs(backbone.encode([example]), {"image": 0}))[0]
                expected = 10.0 * backbone(backbone.inputs(texts, {"text": 0})) @ x
            torch.testing.assert_close(found[place], expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_is_one_line(clip: DualBackbone, tiny: TextBackbone, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PituneError, match="use a dual encoder"):
        KIND.start(tiny)
    with pytest.raises(PituneError, match="a conditional_prompt acts in text; leave it out"):
        ConditionalPrompt(towers=("image",)).start(clip)
    expert = KIND.start(clip)
    (held,) = expert.values()
    held["net.down"] = torch.zeros(2, 48)
    for name, content in to_files(KIND, expert, "tiny").items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PituneError, match="its net reads 48 numbers of a picture, this model gives 32"):
        pitune.load(plain_dual(folder), tmp_path)
    with pytest.raises(PituneError, match="BertModel is no dual encoder of pictures and texts"):
        pitune.load(tiny.model, tmp_path)
