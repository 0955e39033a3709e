"""The estimate of a pack's memory, against what autograd saves of whole packs and what DeepSpeed holds."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from members import TASKS, Member, every_member
from tinystudy import make_materials
from torch import Tensor, nn

from pitune.backbones import Inputs, base
from pitune.experts import Bank, ConditionalPrompt, Expert, ExpertKind, Whole
from pitune.materials import Materials
from pitune.objectives import Match, Row, Rows
from pitune.tasks.task import Example, Slice, Task
from pitune.training.engine import Engine, EngineSettings
from pitune.training.memory import COPY, LIBRARIES, MARGIN, TRAINED, PackMemory, footprint, saved
from pitune.training.pack import ExpertJob
from pitune.training.recipe import Recipe
from pitune.training.settings import TrainingSettings

EXPERTS, ROWS = 3, 5
NAMES = [task.name for task in TASKS]


class Bare:
    """As much of a study's materials as is looked at."""

    def __init__(self, member: Member) -> None:
        self.backbone, self.kind, self.objective = member.backbone, member.kind, member.objective
        self.start, self.settings = member.kind.start(member.backbone), self

    def task(self, name: str) -> Task:
        return next(task for task in TASKS if task.name == name)

    def cost(self, example: Example) -> int:
        return len(example.text)


def measured(member: Member, kind: ExpertKind, experts: list[Expert], task: Task) -> int:
    """Return what autograd saves of a pack's whole forward pass, all rows as long as the longest of the task."""
    backbone, objective, bank = member.backbone, member.objective, Bank(kind, experts)
    rows = Rows(backbone, objective, [(task, task.splits["train"], 1.0)]).rows
    groups: list[list[Row]] = [[max(rows, key=lambda row: row.encoded.cost)] * ROWS] * len(experts)
    batch = objective.collate(backbone, backbone.firsts(list(experts[0])), groups)
    return saved(lambda: objective.losses(backbone, bank, batch), [*backbone.parameters(), *bank.parameters()])


@every_member
def test_what_a_pack_keeps_is_told_within_a_third(member: Member) -> None:
    found = footprint(cast(Materials, Bare(member)), member.kind, NAMES)
    for task in TASKS:
        reading = found.readings[task.name]
        texts = member.objective.texts_at_once(EXPERTS, ROWS, len(task.labels), 64, member.kind.conditional)
        told = MARGIN * (EXPERTS * ROWS * reading.example + texts * reading.text)
        kept = measured(member, member.kind, member.experts(EXPERTS), task)
        assert kept <= told <= 1.3 * kept


def test_a_change_of_every_weight_keeps_a_copy_of_it_besides() -> None:
    member = Member("bert", Whole(), Match())
    found = footprint(cast(Materials, Bare(member)), member.kind, NAMES)
    assert found.numbers == found.parameters == sum(one.numel() for one in member.backbone.parameters())
    told = MARGIN * ROWS * found.readings["one"].example + COPY * found.numbers
    kept = measured(member, member.kind, member.experts(1), TASKS[0])
    assert kept <= told <= 1.3 * kept


@pytest.mark.parametrize("at_once", [8, 24, 1000])
def test_texts_beside_an_example_are_read_so_many_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parts they come in, in the pass back too."""
    monkeypatch.setitem(base.ROWS_AT_ONCE, "cpu", at_once)
    member = Member("clip", ConditionalPrompt(tokens=3, towers=("text",)), Match())
    sizes: list[int] = []
    forward = type(member.backbone).forward

    def counted(self: Any, inputs: Inputs) -> Tensor:
        found: Tensor = forward(self, inputs)
        if inputs.tower == "text":
            sizes.append(len(found))
        return found

    monkeypatch.setattr(type(member.backbone), "forward", counted)
    task, bank = TASKS[2], Bank(member.kind, member.experts(2))
    batch = member.objective.collate(member.backbone, {"text": 0}, [member.rows(task).rows[:3]] * 2)
    losses = member.objective.losses(member.backbone, bank, batch)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    told = member.objective.texts_at_once(2, 3, len(task.labels), at_once, conditional=True)
    assert told >= max(sizes) > told - 6  # a part has as many texts of each row


class Layers(nn.Module):
    """Two experts' parameters, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ParameterList([nn.Parameter(torch.randn(2, 100, 250)) for _ in range(4)])

    def forward(self) -> Tensor:
        return torch.stack([(held**2).sum((1, 2)) for held in self.held]).sum(0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_a_trained_number_takes_is_what_deepspeed_holds(stage: Literal[0, 1, 2, 3]) -> None:
    before = alive()
    model = Layers()
    with Engine(model, EngineSettings(stage), experts=2) as engine:
        for _ in range(2):
            losses = engine()
            engine.backward(losses)
            most = alive() - before
            engine.step()
    numbers = sum(one.numel() for one in model.parameters())
    # The squares' graph holds the parameters' copies, of which there is one.
    assert 0.75 * sum(TRAINED[stage]) <= most / numbers <= 1.02 * (sum(TRAINED[stage]) + COPY)


def alive() -> int:
    """Return the bytes of all tensors that there are."""
    gc.collect()
    found = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and one.device.type == "cpu"]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}.values())


@pytest.fixture
def materials(tiny_folder: Path, tmp_path: Path) -> Materials:
    return make_materials(tmp_path / "study", tiny_folder, steps=3)


def job(text: str, rows: int) -> ExpertJob:
    return ExpertJob((f"experts/{text}",), {}, text, ((Slice.parse(text), 1.0),), Recipe(batch_size=rows))


def test_a_pack_is_the_sum_of_its_terms(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pitune.training.memory.CACHE.most", 1000)
    found = footprint(materials, materials.kind, ["a", "b"])
    assert found.frozen == 4 * found.parameters
    example = max(found.readings["a"].example, found.readings["b"].example)

    def memory(workers: int = 1, **settings: Any) -> PackMemory:
        chosen = TrainingSettings.model_validate(settings)
        return PackMemory({materials.kind: found}, materials, chosen, workers)

    pack = [job("a@4#0", 512), job("b@4#0", 512)]  # more than a pass without gradients takes at once
    fixed = LIBRARIES + 1000 + found.frozen
    assert memory(zero_stage=0).of(pack) == round(fixed + 2 * 20 * found.numbers + MARGIN * 2 * 512 * example)
    assert memory(4, zero_stage=1).of(pack) == round(fixed + 2 * 15 * found.numbers + MARGIN * 2 * 128 * example)
    accumulating = memory(gradient_accumulation=8, zero_stage=0).of(pack)
    assert accumulating == round(fixed + 2 * 20 * found.numbers + MARGIN * 2 * 64 * example)
    passing = max(reading.passing for reading in found.readings.values())
    assert memory(zero_stage=0).of([job("a@4#0", 1)]) == round(fixed + 20 * found.numbers + MARGIN * 64 * passing)


def test_sharing_out_the_backbone_saves_nothing_of_a_small_one(materials: Materials) -> None:
    found = footprint(materials, materials.kind, ["a"])
    large = replace(found, parameters=20_000_000_000, frozen=80_000_000_000)
    for known, told in ((found, found.frozen * 1.25), (large, 80e9), (replace(large, frozen=40_000_000_000), 40e9)):
        sizes = [
            PackMemory({materials.kind: known}, materials, TrainingSettings(zero_stage=stage), 4).of([job("a@4#0", 8)])
            for stage in (2, 3)
        ]
        assert sizes[1] - sizes[0] == pytest.approx(told - known.frozen + found.numbers, abs=2)
