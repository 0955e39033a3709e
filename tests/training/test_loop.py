"""Packed training against a plain PyTorch loop that trains one expert after another and knows nothing of packs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tinymodel import KINDS, PlainExpert, flat, make_rows, make_task, open_encoder, plain_embedding, random_expert
from torch import Tensor, nn

from pitune.backbones.text import TextBackbone
from pitune.experts import Expert, ExpertKind, Lora
from pitune.interpolation.scoring import probabilities
from pitune.training.engine import EngineSettings
from pitune.training.loop import Alone, Member, PackTraining, Trained
from pitune.training.recipe import Recipe

LORA, ADAPTER = KINDS
RECIPE = Recipe(steps=6, batch_size=4, learning_rate=0.02, schedule="linear", warmup=0.3, weight_decay=0.1)
SETTINGS = EngineSettings(weight_decay=0.1)
TASKS = (("a", 2, 10, 4), ("b", 5, 26, 12), ("c", 3, 90, 8))  # name, classes, examples, longest text
Stage = Literal[0, 1, 2, 3]


def members(encoder: TextBackbone, kind: ExpertKind) -> list[Member]:
    start, found = kind.start(encoder), []
    for name, classes, examples, longest in TASKS:
        task = make_task(name, classes, examples, longest)
        train, validation = (make_rows(encoder, kind, task, split) for split in ("train", "validation"))
        found.append(Member(f"{name}@full#0", start, train, validation))
    return found


@functools.cache
def plainly(folder: Path, kind: ExpertKind, index: int) -> tuple[Expert, list[float], tuple[float, float]]:
    """Train one expert on one task, text by text, unpadded, from the whole encoder; return it, losses, validation."""
    encoder = open_encoder(folder)
    name, classes, examples, longest = TASKS[index]
    task = make_task(name, classes, examples, longest)
    candidates = encoder.embed(task.label_texts)
    expert = PlainExpert(kind, kind.start(encoder))
    order = make_rows(encoder, kind, task).order(f"{name}@full#0", RECIPE.steps, RECIPE.batch_size).tolist()
    model = encoder.model
    expert.put_on(model)
    optimizer = torch.optim.AdamW(expert.parameters(), lr=1.0, weight_decay=0.1)

    def logits(split: str, rows: list[int]) -> tuple[Tensor, Tensor]:
        chosen = [task.splits[split][row] for row in rows]
        embedded = [plain_embedding(model, encoder.tokenizer(e.text)["input_ids"]) for e in chosen]
        return 10.0 * torch.stack(embedded) @ candidates.T, torch.tensor([e.label for e in chosen])

    losses = []
    for step, rows in enumerate(order):
        optimizer.param_groups[0]["lr"] = RECIPE.rate(step)
        loss = nn.functional.cross_entropy(*logits("train", rows))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        found, labels = logits("validation", list(range(examples)))
    accuracy = float((found.argmax(1) == labels).float().mean())
    return expert.expert(), losses, (float(nn.functional.cross_entropy(found, labels)), accuracy)


def check(outcome: Trained, folder: Path, kind: ExpertKind, index: int) -> None:
    expert, losses, (loss, accuracy) = plainly(folder, kind, index)
    assert outcome.error is None and outcome.step == RECIPE.steps
    torch.testing.assert_close(flat(outcome.expert), flat(expert), atol=2e-5, rtol=1e-3)
    assert [point["loss"] for point in outcome.curve] == pytest.approx(losses, abs=1e-4)
    assert outcome.validation["loss"] == pytest.approx(loss, abs=1e-4)
    assert outcome.validation["accuracy"] == pytest.approx(accuracy)


def train(
    encoder: TextBackbone,
    kind: ExpertKind,
    pack: list[Member],
    recipe: Recipe = RECIPE,
    settings: EngineSettings = SETTINGS,
) -> list[Trained]:
    return PackTraining(encoder, kind, pack, recipe, settings).run()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_pack_equals_plain_loops_one_after_another(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    for index, outcome in enumerate(train(tiny, kind, members(tiny, kind))):
        check(outcome, tiny_folder, kind, index)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_pack_of_one_equals_the_plain_loop(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    for index, member in enumerate(members(tiny, kind)):
        check(train(tiny, kind, [member])[0], tiny_folder, kind, index)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_gives_the_same(stage: Stage, tiny: TextBackbone, tiny_folder: Path) -> None:
    settings = EngineSettings(stage, weight_decay=0.1)
    for index, outcome in enumerate(train(tiny, LORA, members(tiny, LORA), settings=settings)):
        check(outcome, tiny_folder, LORA, index)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_same(parts: int, tiny: TextBackbone, tiny_folder: Path) -> None:
    settings = EngineSettings(1, gradient_accumulation=parts, weight_decay=0.1)
    for index, outcome in enumerate(train(tiny, LORA, members(tiny, LORA), settings=settings)):
        check(outcome, tiny_folder, LORA, index)


def test_validation_runs_no_more_rows_than_there_are(tiny: TextBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, seen = members(tiny, LORA), 0
    forward = TextBackbone.forward

    def counting(self: TextBackbone, inputs: object, first: int = 0) -> Tensor:
        nonlocal seen
        seen += 0 if torch.is_grad_enabled() else len(inputs.ids)  # type: ignore[attr-defined]
        return forward(self, inputs, first)  # type: ignore[arg-type]

    monkeypatch.setattr(TextBackbone, "forward", counting)
    train(tiny, LORA, pack)
    assert seen == sum(examples for _, _, examples, _ in TASKS)


def test_best_is_the_lowest_validation_loss_of_each_expert(tiny: TextBackbone) -> None:
    recipe = RECIPE.model_copy(update={"steps": 12, "learning_rate": 0.3, "validate_every": 2, "select": "best"})
    found = train(tiny, LORA, members(tiny, LORA), recipe)
    for outcome in found:
        measured = {int(p["step"]): p["validation"] for p in outcome.curve if not math.isnan(p["validation"])}
        assert sorted(measured) == [2, 4, 6, 8, 10, 12]
        assert outcome.step == min(measured, key=lambda step: measured[step])
        assert outcome.validation["loss"] == measured[outcome.step]
    assert len({outcome.step for outcome in found}) > 1  # each has its own choice, not the pack
    # The chosen expert is the one of that step: scored anew, it has the loss that was measured then.
    early = next(outcome for outcome in found if outcome.step < 12)
    member = members(tiny, LORA)[found.index(early)]
    chances = probabilities(LORA, [early.expert], member.validation)[0]
    truth = chances[torch.arange(len(chances)), member.validation.labels]
    assert float(-truth.log().mean()) == pytest.approx(early.validation["loss"], abs=1e-4)


def test_last_is_the_last_step_whatever_its_loss(tiny: TextBackbone) -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 0.3, "validate_every": 2})
    with_checks = train(tiny, LORA, members(tiny, LORA), recipe)
    without = train(tiny, LORA, members(tiny, LORA), recipe.model_copy(update={"validate_every": None}))
    for one, other in zip(with_checks, without, strict=True):
        assert one.step == other.step == 6
        assert torch.equal(flat(one.expert), flat(other.expert))


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("poison", [("lora_B.weight", math.inf), ("lora_A.weight", math.nan)], ids=["loss", "gradient"])
def test_an_expert_that_is_not_a_number_leaves_the_others_alone(
    select: str, stage: Stage, poison: tuple[str, float], tiny: TextBackbone
) -> None:
    pack = members(tiny, LORA)
    recipe = RECIPE.model_copy(update={"select": select, "validate_every": 2})
    healthy = train(tiny, LORA, pack, recipe, EngineSettings(stage))
    sick = {site: {key: tensor.clone() for key, tensor in held.items()} for site, held in pack[1].start.items()}
    next(iter(sick.values()))[poison[0]][:] = poison[1]  # where the query is NaN, attention hides it from the loss
    found = train(tiny, LORA, [pack[0], replace(pack[1], start=sick), pack[2]], recipe, EngineSettings(stage))
    for index in (0, 2):
        assert found[index].error is None
        assert torch.equal(flat(found[index].expert), flat(healthy[index].expert))
        assert str(found[index].curve) == str(healthy[index].curve)  # as text, for NaN is not NaN
    assert found[1].error == ("expert b@full#0: the loss is nan at step 1; lower training.*.learning_rate")


def test_a_start_of_larger_rank_trains_in_the_pack(tiny: TextBackbone) -> None:
    """A merged expert may be the start of one member: padding the others with zero ranks changes nothing."""
    pack = members(tiny, LORA)
    large = random_expert(Lora(rank=4, alpha=12, layers=2), tiny, 3)
    mixed = train(tiny, LORA, [pack[0], replace(pack[1], start=large)])
    alone = train(tiny, LORA, [pack[0]])[0]
    for site, held in alone.expert.items():
        for key, tensor in held.items():
            found = mixed[0].expert[site][key]
            kept, rest = (found[:2], found[2:]) if key.startswith("lora_A") else (found[:, :2], found[:, 2:])
            torch.testing.assert_close(kept, tensor, atol=1e-5, rtol=1e-3)
            assert not rest.any()


class Interrupted(Exception):
    """Stands for a crash."""


class Saving(Alone):
    """A seat that keeps the last checkpoint and crashes after some steps."""

    def __init__(self, folder: Path, crash_after: int | None) -> None:
        self.folder, self.crash_after = folder, crash_after
        self.saved: list[int] = []

    def progress(self, step: int, steps: int) -> None:
        if step == self.crash_after:
            raise Interrupted

    def resume(self) -> Path | None:  # type: ignore[override]
        return self.folder if self.folder.exists() else None

    def checkpoint(self, write: Callable[[Path], None], step: int) -> None:
        self.folder.mkdir(exist_ok=True)
        write(self.folder)
        self.saved.append(step)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("recipe", [{}, {"select": "best", "validate_every": 1}], ids=["last", "best"])
def test_resuming_is_bit_identical(stage: Stage, recipe: dict[str, object], tiny: TextBackbone, tmp_path: Path) -> None:
    chosen = RECIPE.model_copy(update={"learning_rate": 0.2, **recipe})
    settings = EngineSettings(stage, weight_decay=0.1)
    through = train(tiny, LORA, members(tiny, LORA), chosen, settings)
    first = Saving(tmp_path / "kept", crash_after=5)
    with pytest.raises(Interrupted):
        PackTraining(tiny, LORA, members(tiny, LORA), chosen, settings, first, checkpoint_every=2).run()
    assert first.saved == [2, 4]
    second = Saving(tmp_path / "kept", crash_after=None)
    training = PackTraining(tiny, LORA, members(tiny, LORA), chosen, settings, second, checkpoint_every=2)
    resumed = training.run()
    assert second.saved == []  # went on from step 4; the last step needs no checkpoint
    for one, other in zip(resumed, through, strict=True):
        assert torch.equal(flat(one.expert), flat(other.expert))
        assert (one.step, one.validation, str(one.curve)) == (other.step, other.validation, str(other.curve))


def test_the_backbone_is_as_it_was(tiny: TextBackbone) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    train(tiny, ADAPTER, members(tiny, ADAPTER), settings=EngineSettings(3))
    after = tiny.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_near_full_precision(precision: str, tiny: TextBackbone, tiny_folder: Path) -> None:
    half = open_encoder(tiny_folder, precision)  # type: ignore[arg-type]
    settings = EngineSettings(1, scale_losses=precision == "fp16")
    found = train(half, LORA, members(half, LORA), settings=settings)
    for one, other in zip(found, train(tiny, LORA, members(tiny, LORA), settings=EngineSettings()), strict=True):
        losses = [[point["loss"] for point in outcome.curve] for outcome in (one, other)]
        assert losses[0] == pytest.approx(losses[1], abs=0.1)
        assert one.error is None and flat(one.expert).dtype == torch.float32
