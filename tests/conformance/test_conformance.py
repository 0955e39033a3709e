"""What holds for every kind on every backbone that it fits, for every objective; see ``members`` and ``plain``."""

from __future__ import annotations

import copy
from pathlib import Path

import plain
import pytest
import torch
from members import MEMBERS, TASKS, TINY, Member, every_member, opened
from plain import Plain, assert_near
from tinymodel import flat
from torch import nn

import pitune
from pitune.backbones import BACKBONES
from pitune.backbones.cache import CACHE
from pitune.embedding.fisher import fisher
from pitune.experts import KINDS, Bank, UnifiedPrompt
from pitune.experts.checkpoint import read, to_files
from pitune.interpolation.mixture import Mixture
from pitune.objectives import NOBODY, OBJECTIVES


def test_every_member_of_the_registries_is_here() -> None:
    kinds = [family.model_fields["kind"].default for family in BACKBONES]
    assert list(TINY) == kinds, (
        "a registered family of backbones needs a tiny one in tests/conformance/members.py: TINY"
    )
    assert {type(member.kind) for member in MEMBERS} == set(KINDS)
    assert {type(member.objective) for member in MEMBERS} == set(OBJECTIVES)


@every_member
def test_packed_equals_single(member: Member) -> None:
    backbone, objective = member.backbone, member.objective
    experts = member.experts(3)
    bank = Bank(member.kind, experts)
    batch = objective.collate(backbone, backbone.firsts(list(experts[0])), member.groups())
    found = objective.losses(backbone, bank, batch)
    found.sum().backward()  # type: ignore[no-untyped-call]
    alone = [Plain(backbone, member.kind, expert) for expert in experts]
    expected = plain.losses(alone, objective, TASKS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    bare = objective.losses(backbone, NOBODY, batch)
    assert (found - bare).abs().max() > 1e-3, "the experts do nothing"
    for index, (one, losses) in enumerate(zip(alone, expected, strict=True)):
        gradients = {
            path: {
                name: torch.zeros_like(t[index]) if t.grad is None else t.grad[index] for name, t in s.tensors().items()
            }
            for path, s in bank.named_sites()
        }
        assert_near(gradients, one.gradient(losses.sum()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.model.modules())


@every_member
def test_merged_equals_mixed(member: Member) -> None:
    backbone, objective = member.backbone, member.objective
    experts, weights = member.experts(3), [0.5, 0.2, 0.3]
    start = torch.tensor(weights).log()
    batch = objective.collate(backbone, backbone.firsts(list(experts[0])), member.groups()[:1])
    mixture = Mixture(backbone, member.kind, experts, start)
    found = objective.losses(backbone, mixture, batch).detach()
    merged = Plain(backbone, member.kind, mixture.merged())
    torch.testing.assert_close(found, plain.losses([merged], objective, TASKS[:1]).detach(), atol=1e-4, rtol=1e-4)
    if member.kind.kind in plain.KNOWN:
        model = copy.deepcopy(backbone)
        average = plain.mixed(member.kind, experts, weights, model.model)
        if average is None and objective.kind != "match":
            return  # the reference for other objectives knows experts, not a changed model
        other = Plain(backbone, member.kind, average or experts[0])
        if average is None:
            other.live = model
        torch.testing.assert_close(found, plain.losses([other], objective, TASKS[:1]).detach(), atol=1e-4, rtol=1e-4)


@every_member
def test_a_task_vector_leads_back_to_its_expert(member: Member) -> None:
    """At full rank: the vector is the same again, and what it leads to acts as the expert did."""
    backbone, objective, kind = member.backbone, member.objective, member.kind
    start, (expert, other) = kind.start(backbone), member.experts(2)
    found = {}
    for path in expert:
        vector, unlike = (kind.vector(one[path], start[path]) for one in (expert, other))
        found[path] = kind.from_vector(vector, start[path], 64)
        again = kind.vector(found[path], start[path])
        assert list(again) == list(vector)
        for name, moved in vector.items():
            torch.testing.assert_close(again[name], moved, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(moved, unlike[name]), "it tells no expert from another"
    batch = objective.collate(backbone, backbone.firsts(list(expert)), member.groups()[:1])
    losses = objective.losses(backbone, Bank(kind, [found]), batch).detach()
    expected = plain.losses([Plain(backbone, kind, expert)], objective, TASKS[:1]).detach()
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)


@every_member
def test_task_vectors_add_up(member: Member) -> None:
    """To what mixing gives, where the weights sum to one; and to nothing, which is the start, where they are zero."""
    backbone, kind = member.backbone, member.kind
    start, experts = kind.start(backbone), member.experts(2)
    for path, at in start.items():
        stacked = {name: torch.stack([one[path][name] for one in experts]) for name in at}
        weights = torch.tensor([0.3, 0.7])
        pairs = [(kind.summed(stacked, at, weights), kind.mix(stacked, weights))]
        pairs.append((kind.summed(stacked, at, torch.zeros(2)), {name: tensor[None] for name, tensor in at.items()}))
        for summed, right in pairs:
            one, other = ({name: tensor[0] for name, tensor in held.items()} for held in (summed, right))
            for name, moved in kind.vector(one, at).items():
                torch.testing.assert_close(moved, kind.vector(other, at)[name], atol=1e-5, rtol=1e-4)


@every_member
def test_exact_fisher_equals_a_loop(member: Member) -> None:
    backbone, objective = member.backbone, member.objective
    (expert,) = member.experts(1)
    task = TASKS[0]
    found = fisher(backbone, member.kind, objective, expert, member.rows(task), batch=3)
    one = Plain(backbone, member.kind, expert)
    examples = task.splits["test"]
    total = {path: {name: torch.zeros_like(tensor) for name, tensor in held.items()} for path, held in expert.items()}
    for example in examples:
        for path, held in one.gradient(one.loss(objective, task, example)).items():
            for name, gradient in held.items():
                total[path][name] += gradient.square() / len(examples)
    assert_near(found, total)


@every_member
def test_two_files_read_back_and_load(member: Member, tmp_path: Path) -> None:
    backbone = member.backbone
    (expert,) = member.experts(1)
    for name, content in to_files(member.kind, expert, "tiny").items():
        (tmp_path / name).write_bytes(content)
    kind, found = read(tmp_path)
    assert type(kind) is type(member.kind) and found.keys() == expert.keys()
    assert torch.equal(flat(found), flat(expert))
    assert to_files(kind, found, "tiny") == to_files(member.kind, expert, "tiny")
    one = Plain(backbone, member.kind, expert)
    twin = copy.deepcopy(backbone)
    assert pitune.load(twin.model, tmp_path) is twin.model
    one.bare, loaded = one.live, twin
    for row in [*backbone.encode(TASKS[0].splits["test"]), *backbone.encode_texts(["w1 w2", "w3"])]:
        one.live = loaded
        ours = one.vector(row, True)
        torch.testing.assert_close(ours, one.vector(row, False), atol=1e-5, rtol=1e-4)


@every_member
def test_a_neutral_start_changes_nothing(member: Member) -> None:
    backbone, objective = member.backbone, member.objective
    start = member.kind.start(backbone)
    batch = objective.collate(backbone, backbone.firsts(list(start)), member.groups()[:1])
    found = objective.losses(backbone, Bank(member.kind, [start]), batch)
    assert torch.equal(found, objective.losses(backbone, NOBODY, batch)) is member.kind.neutral
    assert torch.equal(flat(start), flat(member.kind.start(backbone)))


@every_member
def test_live_and_frozen_equals_all_live(member: Member) -> None:
    """What no expert touches does not run, and the result is that of running everything."""
    backbone, objective = member.backbone, member.objective
    experts = member.experts(3)
    bank = Bank(member.kind, experts)
    firsts = backbone.firsts(list(experts[0]))
    assert set(firsts) == set(member.kind.towers or (backbone.examples_tower,))
    CACHE.clear()
    with Calls(backbone.model) as first_time:
        objective.collate(backbone, firsts, member.groups())
    assert first_time.seen
    with Calls(backbone.model) as calls:  # from the cache
        found = objective.losses(backbone, bank, objective.collate(backbone, firsts, member.groups()))
    sites = {(tower.name, layer) for tower in backbone.towers.values() for layer in range(tower.depth)}
    located = [site for path in calls.seen if (site := backbone.locate(path))]
    assert {site.tower for site in located} <= set(firsts)
    ran = {(site.tower, site.layer) for site in located if site.layer >= 0}
    assert ran == {(tower, layer) for tower, layer in sites if tower in firsts and layer >= firsts[tower]}
    if len(backbone.towers) > 1 or firsts != {backbone.examples_tower: 0}:
        everything = objective.collate(backbone, dict.fromkeys(firsts, 0), member.groups())
        torch.testing.assert_close(objective.losses(backbone, bank, everything), found, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        expected = plain.losses([Plain(backbone, member.kind, expert) for expert in experts], objective, TASKS)
    torch.testing.assert_close(found.detach(), expected, atol=1e-4, rtol=1e-4)


class Calls:
    """The paths of the modules that run inside the block."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.seen = model, set[str]()

    def __enter__(self) -> Calls:
        self.handles = [
            module.register_forward_pre_hook(lambda *_, path=path: self.seen.add(path))
            for path, module in self.model.named_modules()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def test_a_backbone_reads_a_row_alike_in_any_company() -> None:
    """Padding and neighbours change nothing, and what is kept is what is computed."""
    for name in (name for made in TINY.values() for name in made):
        backbone = opened(name)
        rows = backbone.encode(TASKS[0].splits["train"])
        for first in (None, 0, 1, 2):
            firsts = {} if first is None else {backbone.examples_tower: first}
            CACHE.clear()
            for _ in range(2):
                together = backbone(backbone.inputs(rows, firsts))
                alone = torch.stack([backbone(backbone.inputs([row], firsts))[0] for row in rows])
                torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TINY["dual"])
def test_towers_without_experts_stay_as_they_are(name: str) -> None:
    """An expert in one tower leaves the other tower's vectors bit for bit as they are."""
    backbone = opened(name)
    for kind in (kind(towers=("text",)) for kind in KINDS if kind is not UnifiedPrompt):  # which acts in both
        pictures = backbone.inputs(backbone.encode(TASKS[0].splits["test"]), {"image": 0})
        with Bank(kind, [kind.start(backbone)]).attached(backbone.model):
            inside = backbone(pictures)
        assert torch.equal(inside, backbone(pictures))
