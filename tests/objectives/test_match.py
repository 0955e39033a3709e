"""Matching against plain computations, row by row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tinymodel import (
    KINDS,
    MATCH,
    PlainExpert,
    embed,
    make_rows,
    make_task,
    open_encoder,
    plain_embedding,
    random_expert,
    with_several,
)
from torch import Tensor, nn

from pitune.backbones.text import TextBackbone
from pitune.experts import Bank
from pitune.objectives import NOBODY, Match, Objective, Rows
from pitune.objectives import right as right_of

LORA = KINDS[0]


def test_packed_scores_and_losses_equal_each_tasks_own(tiny: TextBackbone) -> None:
    tasks = [make_task(name, classes, 12) for name, classes in (("a", 2), ("b", 5), ("c", 3))]
    chosen = [[0, 5], [3, 4], [7, 7]]
    groups = [make_rows(tiny, task).take(rows) for task, rows in zip(tasks, chosen, strict=True)]
    batch = MATCH.collate(tiny, {"text": 1}, groups)
    losses, found = MATCH.losses(tiny, NOBODY, batch), MATCH.answers(tiny, NOBODY, batch)
    for index, (task, rows) in enumerate(zip(tasks, chosen, strict=True)):
        examples = [task.splits["train"][row] for row in rows]
        own = 10.0 * embed(tiny, [e.text for e in examples]) @ embed(tiny, task.label_texts).T
        labels = torch.tensor([e.label for e in examples])
        expected = nn.functional.cross_entropy(own, labels, reduction="none")
        torch.testing.assert_close(losses[index], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.losses[index], expected, atol=1e-5, rtol=1e-5)
        assert found.answers[index] == own.argmax(1).tolist()
        torch.testing.assert_close(torch.tensor(found.scores[index]), own.softmax(1).amax(1), atol=1e-5, rtol=1e-5)
        assert right_of(found, groups)[index].tolist() == (own.argmax(1) == labels).float().tolist()


def test_a_row_meets_its_own_tasks_candidates_only(tiny: TextBackbone) -> None:
    """One expert on rows of three tasks: each row's loss is what it is among its own task's candidates."""
    tasks = [make_task(name, classes, 12) for name, classes in (("a", 2), ("b", 5), ("c", 3))]
    rows = Rows(tiny, MATCH, [(task, task.splits["train"], 1.0) for task in tasks])
    chosen = [30, 1, 13, 14, 2, 35]
    batch = MATCH.collate(tiny, {"text": 0}, [rows.take(chosen)])
    found = MATCH.answers(tiny, NOBODY, batch)
    for place, row in enumerate(chosen):
        task, example = tasks[row // 12], tasks[row // 12].splits["train"][row % 12]
        own = 10.0 * embed(tiny, [example.text])[0] @ embed(tiny, task.label_texts).T
        assert float(found.losses[0, place]) == pytest.approx(float(-own.log_softmax(0)[example.label]), abs=1e-5)
        assert found.answers[0][place] == int(own.argmax())


def test_of_several_labels_each_is_right_or_wrong_by_itself(tiny: TextBackbone) -> None:
    """By a plain loop, beside a row of a task with one label each, and before others of one expert."""
    several, one = with_several(make_task("a", 4, 12)), make_task("b", 3, 12)
    rows = Rows(tiny, MATCH, [(task, task.splits["train"], 1.0) for task in (one, several)])
    chosen = [12, 3, 13, 14, 5, 15, 16]
    batch = MATCH.collate(tiny, {"text": 0}, [rows.take(chosen)])
    found = MATCH.answers(tiny, NOBODY, batch)
    torch.testing.assert_close(MATCH.losses(tiny, NOBODY, batch), found.losses)
    for place, row in enumerate(chosen):
        task = several if row >= 12 else one
        example = task.splits["train"][row % 12]
        own = 10.0 * embed(tiny, task.label_texts) @ embed(tiny, [example.text])[0]
        if task is one:
            assert float(found.losses[0, place]) == pytest.approx(float(-own.log_softmax(0)[example.label]), abs=1e-5)
            continue
        assert isinstance(example.label, tuple) and len(example.label) == row % 12 % 5
        right = torch.tensor([float(label in example.label) for label in range(4)])
        expected = nn.functional.binary_cross_entropy_with_logits(own, right)
        assert float(found.losses[0, place]) == pytest.approx(float(expected), abs=1e-5)
        assert found.scores[0][place] == pytest.approx(own.tolist(), abs=1e-4)
        assert found.answers[0][place] == tuple(label for label in range(4) if own[label] > 0)
        hit = found.answers[0][place] == example.label
        assert bool(right_of(found, [rows.take(chosen)])[0, place]) == hit


def test_several_labels_are_drawn_one_by_one() -> None:
    """As often as their sigmoids say, independently of each other, and by the luck alone."""
    logits = torch.tensor([-1.0, 0.5, float("-inf"), 2.0]).expand(1, 8000, 4)
    luck = torch.rand((1, 8000), generator=torch.Generator().manual_seed(0))
    drawn = MATCH.drawn(logits, luck, torch.ones((1, 8000), dtype=torch.bool))
    chances = logits[0, 0].sigmoid()
    assert not drawn[..., 2].any()
    torch.testing.assert_close(drawn[0].float().mean(0), chances, atol=0.02, rtol=0)
    both = drawn[0, :, [0, 1, 3]].float()
    torch.testing.assert_close(both.T @ both / 8000, expected_pairs(chances[[0, 1, 3]]), atol=0.02, rtol=0)
    few = MATCH.drawn(logits[:, :3], luck[:, 5:8], torch.tensor([[True, False, True]]))
    assert torch.equal(few[0, [0, 2]], drawn[0, [5, 7]]) and int(few[0, 1].sum()) == 1


def expected_pairs(chances: Tensor) -> Tensor:
    """Return how often two independent labels are drawn together, and each by itself."""
    return torch.outer(chances, chances).fill_diagonal_(0) + torch.diag(chances)


def test_candidates_are_frozen_unless_they_are_live(tiny: TextBackbone, tiny_folder: Path) -> None:
    """Live: the expert acts on the label texts too. The reference is a plain model, text by text."""
    task, expert = make_task("toy", 3, 9), random_expert(LORA, tiny, 0)
    plain = open_encoder(tiny_folder)
    PlainExpert(LORA, expert).put_on(plain.model)

    def by_hand(model: TextBackbone, texts: list[str]) -> Tensor:
        return torch.stack([plain_embedding(model.model, model.tokenizer(text)["input_ids"]) for text in texts])

    texts = [example.text for example in task.splits["train"]]
    labels = torch.tensor([example.label for example in task.splits["train"]])
    for is_live in (False, True):
        objective = MATCH.model_copy(update={"live": is_live})
        candidates = by_hand(plain if is_live else tiny, [*task.label_texts])
        rows = Rows(tiny, objective, [(task, task.splits["train"], 1.0)])
        batch = objective.collate(tiny, {"text": 1}, [rows.take(range(9))])
        losses = objective.losses(tiny, Bank(LORA, [expert]), batch)
        expected = nn.functional.cross_entropy(10.0 * by_hand(plain, texts) @ candidates.T, labels, reduction="none")
        torch.testing.assert_close(losses[0], expected, atol=1e-5, rtol=1e-4)


def test_a_frozen_candidate_is_the_mean_of_its_templates(tiny: TextBackbone) -> None:
    """By hand, beside a task with one template; and what experts act on is read in one sentence."""
    plain, task = make_task("a", 2, 12), make_task("b", 3, 12)
    task = dataclasses.replace(task, templates=("w1 {}", "{} w2 w3", "w4 {} w5"))
    groups = [make_rows(tiny, one).take([0, 5]) for one in (plain, task)]
    found = MATCH.losses(tiny, NOBODY, MATCH.collate(tiny, {}, groups))
    again = MATCH.losses(tiny, NOBODY, MATCH.collate(tiny, {}, groups))
    assert torch.equal(found, again), "what is kept is what was computed"
    examples = [task.splits["train"][row] for row in (0, 5)]
    means = [embed(tiny, [one.format(text) for one in task.templates]).mean(0) for text in task.label_texts]
    candidates = nn.functional.normalize(torch.stack(means), dim=1)
    logits = 10.0 * embed(tiny, [one.text for one in examples]) @ candidates.T
    expected = nn.functional.cross_entropy(logits, torch.tensor([one.label for one in examples]), reduction="none")
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=1e-5)
    for objective, sentence in ((Match(live=True), "w1 {}"), (Match(live=True, live_template="{} w9"), "{} w9")):
        texts = [text.content for text in objective.prepare(tiny, task).texts]
        assert texts == [one.content for one in tiny.encode_texts([sentence.format(t) for t in task.label_texts])]


def test_a_template_without_a_place_is_refused() -> None:
    for wrong in ("a photo", "{} and {}"):
        with pytest.raises(ValidationError, match="write one, where the candidate's text goes"):
            Match(live_template=wrong)


def test_drawn_labels_are_among_the_candidates_a_row_meets(tiny: TextBackbone) -> None:
    tasks = [make_task("a", 2, 6), make_task("b", 5, 6)]
    rows = Rows(tiny, MATCH, [(task, task.splits["train"], 1.0) for task in tasks])
    batch = MATCH.collate(tiny, {"text": 0}, [rows.take(range(12))])
    for luck in (0.0, 0.5, 0.999999, 1.0):
        losses = MATCH.losses(tiny, NOBODY, batch, torch.full((1, 12), luck))
        assert losses.isfinite().all()


def test_both_losses_are_the_two_alone(tiny: TextBackbone) -> None:
    """From one pass, and from two, as an objective has it that says nothing."""
    tasks = [make_task("a", 2, 6), make_task("b", 5, 6)]
    bank = Bank(LORA, [random_expert(LORA, tiny, seed) for seed in (0, 1)])
    batch = MATCH.collate(tiny, {"text": 1}, [make_rows(tiny, task).take(range(6)) for task in tasks])
    luck = torch.rand((2, 6), generator=torch.Generator().manual_seed(0))
    alone = MATCH.losses(tiny, bank, batch), MATCH.losses(tiny, bank, batch, luck)
    assert not torch.equal(*alone)
    for found in (MATCH.both_losses(tiny, bank, batch, luck), Objective.both_losses(MATCH, tiny, bank, batch, luck)):
        for one, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(one, expected, atol=1e-6, rtol=1e-6)
