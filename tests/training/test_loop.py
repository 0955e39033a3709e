"""Packed training against a plain PyTorch loop that trains one expert after another and knows nothing of packs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tinymodel import (
    KINDS,
    MATCH,
    PlainExpert,
    embed,
    flat,
    make_rows,
    make_task,
    open_encoder,
    plain_embedding,
    random_expert,
    token_ids,
)
from torch import Tensor, nn

from pitune.backbones import Inputs
from pitune.backbones.text import TextBackbone
from pitune.experts import Bank, Expert, ExpertKind, Lora
from pitune.interpolation.scoring import answers
from pitune.objectives import Rows
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
        train, validation = (make_rows(encoder, task, split) for split in ("train", "validation"))
        found.append(Member(f"{name}@full#0", start, train, validation))
    return found


Parts = tuple[tuple[int, float], ...]  # indices in TASKS, with weights


def member_of(encoder: TextBackbone, kind: ExpertKind, parts: Parts) -> Member:
    """Return a member that trains on several tasks."""
    tasks = [(make_task(*TASKS[index]), weight) for index, weight in parts]
    train, validation = (
        Rows(encoder, MATCH, [(task, task.splits[split], weight) for task, weight in tasks])
        for split in ("train", "validation")
    )
    return Member(name_of(parts), kind.start(encoder), train, validation)


def name_of(parts: Parts) -> str:
    return "+".join(f"{TASKS[index][0]}@full#0" for index, _ in parts)


@functools.cache
def plainly(folder: Path, kind: ExpertKind, parts: Parts) -> tuple[Expert, list[float], tuple[float, float]]:
    """Train one expert, text by text, unpadded, from the whole encoder; return it, its losses, its validation.

    Each text meets the candidates of its own task.
    """
    encoder = open_encoder(folder)
    tasks = [make_task(*TASKS[index]) for index, _ in parts]
    candidates = [embed(encoder, task.label_texts) for task in tasks]
    held = {
        split: [(n, e) for n, task in enumerate(tasks) for e in task.splits[split]] for split in ("train", "validation")
    }
    expert = PlainExpert(kind, kind.start(encoder))
    order = member_of(encoder, kind, parts).train.order(name_of(parts), RECIPE.steps, RECIPE.batch_size).tolist()
    model = encoder.model
    expert.put_on(model)
    optimizer = torch.optim.AdamW(expert.parameters(), lr=1.0, weight_decay=0.1)

    def scores(split: str, rows: list[int]) -> tuple[Tensor, list[bool]]:
        losses, hits = [], []
        for n, example in (held[split][row] for row in rows):
            embedded = plain_embedding(model, token_ids(encoder, [example.text])[0])
            logits = 10.0 * candidates[n] @ embedded
            losses.append(nn.functional.cross_entropy(logits, torch.tensor(example.label)))
            hits.append(int(logits.argmax()) == example.label)
        return torch.stack(losses).mean(), hits

    losses = []
    for step, rows in enumerate(order):
        optimizer.param_groups[0]["lr"] = RECIPE.rate(step)
        loss, _ = scores("train", rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        found, hits = scores("validation", list(range(len(held["validation"]))))
    return expert.expert(), losses, (float(found), sum(hits) / len(hits))


def check(outcome: Trained, folder: Path, kind: ExpertKind, index: int) -> None:
    check_parts(outcome, folder, kind, ((index, 1.0),))


def check_parts(outcome: Trained, folder: Path, kind: ExpertKind, parts: Parts) -> None:
    expert, losses, (loss, accuracy) = plainly(folder, kind, parts)
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
    return PackTraining(encoder, kind, MATCH, pack, recipe, settings).run()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_pack_equals_plain_loops_one_after_another(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    for index, outcome in enumerate(train(tiny, kind, members(tiny, kind))):
        check(outcome, tiny_folder, kind, index)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_a_pack_of_one_equals_the_plain_loop(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    for index, member in enumerate(members(tiny, kind)):
        check(train(tiny, kind, [member])[0], tiny_folder, kind, index)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@pytest.mark.parametrize("weight", [3.0, 1e-12])
def test_an_expert_of_several_tasks_equals_the_plain_loop(
    weight: float, kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path
) -> None:
    """Tasks of two and of five candidates in one batch: each row meets its own task's only."""
    parts = ((0, 1.0), (1, weight))
    member = member_of(tiny, kind, parts)
    drawn = member.train.order(member.name, RECIPE.steps, RECIPE.batch_size)
    assert (drawn < TASKS[0][2]).any()
    assert (drawn >= TASKS[0][2]).any() == (weight > 1)  # what weighs next to nothing does not come
    check_parts(train(tiny, kind, [member])[0], tiny_folder, kind, parts)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_an_expert_of_several_tasks_in_a_pack_equals_itself_alone(
    kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path
) -> None:
    several: Parts = ((1, 1.0), (0, 2.0), (2, 1.0))
    pack = [members(tiny, kind)[0], member_of(tiny, kind, several), members(tiny, kind)[2]]
    together, alone = train(tiny, kind, pack), [train(tiny, kind, [member])[0] for member in pack]
    for index, parts in enumerate((((0, 1.0),), several, ((2, 1.0),))):
        check_parts(together[index], tiny_folder, kind, parts)
        torch.testing.assert_close(flat(together[index].expert), flat(alone[index].expert), atol=2e-5, rtol=1e-3)
        assert together[index].validation == pytest.approx(alone[index].validation, abs=1e-5)


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
    train(tiny, LORA, pack)  # candidates run once, here
    forward = TextBackbone.forward

    def counting(self: TextBackbone, inputs: Inputs) -> Tensor:
        nonlocal seen
        runs = inputs.embeddings is None and not torch.is_grad_enabled()
        seen += len(inputs.tensors["input_ids"]) if runs else 0
        return forward(self, inputs)

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
    index, early = next((index, outcome) for index, outcome in enumerate(found) if outcome.step < 12)
    member = members(tiny, LORA)[index]
    batch = MATCH.collate(tiny, tiny.firsts(list(early.expert)), [member.validation.rows])
    loss = MATCH.losses(tiny, Bank(LORA, [early.expert]), batch).mean()
    assert float(loss) == pytest.approx(early.validation["loss"], abs=1e-4)
    (said,), _ = answers(tiny, LORA, MATCH, [early.expert], member.validation)
    hits = [answer == row.target for answer, row in zip(said, member.validation.rows, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(early.validation["accuracy"])


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
            # The bound of `check`: AdamW makes more of a sum's last bits, which differ among processors.
            torch.testing.assert_close(kept, tensor, atol=2e-5, rtol=1e-3)
            assert not rest.any()


class Interrupted(Exception):
    """Stands for a crash."""


class Saving(Alone):
    """A seat that keeps the last checkpoint and crashes after some steps."""

    def __init__(self, folder: Path, crash_after: int | None) -> None:
        self.folder, self.crash_after = folder, crash_after
        self.saved: list[int] = []

    def progress(self, step: int, steps: int, rows: int) -> None:
        if step == self.crash_after:
            raise Interrupted

    def resume(self) -> AbstractContextManager[Path | None]:
        return nullcontext(self.folder if self.folder.exists() else None)

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
        PackTraining(tiny, LORA, MATCH, members(tiny, LORA), chosen, settings, first, checkpoint_every=2).run()
    assert first.saved == [2, 4]
    second = Saving(tmp_path / "kept", crash_after=None)
    training = PackTraining(tiny, LORA, MATCH, members(tiny, LORA), chosen, settings, second, checkpoint_every=2)
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
