"""Exact Fisher information against a loop over single examples, on plain modules."""

from __future__ import annotations

from pathlib import Path

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
    with_several,
)
from torch import Tensor, nn

from pitune.backbones.text import TextBackbone
from pitune.embedding.fisher import fisher
from pitune.experts import Expert, ExpertKind
from pitune.objectives import Rows

TASK = make_task("toy", 3, 11)
LORA, ADAPTER = KINDS


def one_by_one(folder: Path, kind: ExpertKind, expert: Expert) -> tuple[list[list[Expert]], Tensor]:
    """Return the squared gradients of log p(label | text) for each text and label, and p, (texts, labels)."""
    encoder = open_encoder(folder)
    candidates = embed(encoder, TASK.label_texts)
    plain, model = PlainExpert(kind, expert), encoder.model
    plain.put_on(model)
    squares: list[list[Expert]] = []
    chances = []
    for example in TASK.splits["train"]:
        embedding = plain_embedding(model, encoder.tokenizer(example.text)["input_ids"])
        logits = nn.functional.log_softmax(10.0 * candidates @ embedding, dim=0)
        chances.append(logits.detach().exp())
        squares.append([])
        for label in range(3):
            plain.zero_grad()
            logits[label].backward(retain_graph=True)  # type: ignore[no-untyped-call]
            found = {
                s: {k: t.grad.square() for k, t in h.items() if t.grad is not None} for s, h in plain.sites.items()
            }
            squares[-1].append(found)
    return squares, torch.stack(chances)


def close(found: Expert, expected: Tensor) -> None:
    torch.testing.assert_close(flat(found), expected, atol=1e-6 * float(expected.max()), rtol=2e-3)
    assert float((flat(found) - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_it_equals_a_loop_over_single_examples(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    expert = random_expert(kind, tiny, 0)
    squares, _ = one_by_one(tiny_folder, kind, expert)
    labels = [example.label for example in TASK.splits["train"]]
    expected = torch.stack([flat(found[label]) for found, label in zip(squares, labels, strict=True)]).mean(0)
    found = fisher(tiny, kind, MATCH, expert, make_rows(tiny, TASK))
    assert {(s, k): t.shape for s, h in found.items() for k, t in h.items()} == {
        (s, k): t.shape for s, h in expert.items() for k, t in h.items()
    }
    close(found, expected)


@pytest.mark.parametrize("labels", ["empirical", "true"])
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_the_size_of_the_batches_does_not_matter(labels: str, batch: int, tiny: TextBackbone) -> None:
    expert, rows = random_expert(LORA, tiny, 0), make_rows(tiny, TASK)
    found = fisher(tiny, LORA, MATCH, expert, rows, labels=labels, name="toy", batch=batch)  # type: ignore[arg-type]
    close(found, flat(fisher(tiny, LORA, MATCH, expert, rows, labels=labels, name="toy", batch=5)))  # type: ignore[arg-type]


def test_it_is_not_the_square_of_the_batchs_gradient(tiny: TextBackbone, tiny_folder: Path) -> None:
    """The published code's shortcut; were ours the same, the tests above could not tell."""
    expert = random_expert(LORA, tiny, 0)
    encoder = open_encoder(tiny_folder)
    plain = PlainExpert(LORA, expert)
    plain.put_on(encoder.model)
    examples = TASK.splits["train"]
    embedded = torch.stack([plain_embedding(encoder.model, token_ids(encoder, [e.text])[0]) for e in examples])
    logits = 10.0 * embedded @ embed(encoder, TASK.label_texts).T
    nn.functional.cross_entropy(logits, torch.tensor([e.label for e in examples])).backward()  # type: ignore[no-untyped-call]
    shortcut = flat(
        {s: {k: t.grad.square() for k, t in h.items() if t.grad is not None} for s, h in plain.sites.items()}
    )
    exact = flat(fisher(tiny, LORA, MATCH, expert, make_rows(tiny, TASK)))
    assert nn.functional.cosine_similarity(shortcut, exact, dim=0) < 0.95


def test_true_labels_are_drawn_from_the_model(tiny: TextBackbone, tiny_folder: Path) -> None:
    expert = random_expert(LORA, tiny, 0)
    squares, chances = one_by_one(tiny_folder, LORA, expert)
    by_label = torch.stack([torch.stack([flat(one) for one in found]) for found in squares])  # (texts, labels, numbers)
    expected = (chances.unsqueeze(-1) * by_label).sum(1).mean(0)
    rows = make_rows(tiny, TASK)
    draws = [flat(fisher(tiny, LORA, MATCH, expert, rows, labels="true", name=f"draw {n}")) for n in range(200)]
    mean = torch.stack(draws).mean(0)
    assert float((mean - expected).norm() / expected.norm()) < 0.1
    assert nn.functional.cosine_similarity(mean, expected, dim=0) > 0.998
    # Each draw is the mean over the texts of one label's squares each: found again by least squares.
    matrix = by_label.flatten(0, 1).T.double() / len(by_label)
    weights = torch.linalg.lstsq(matrix, draws[0].double().unsqueeze(1), driver="gelsd").solution.view(
        len(by_label), -1
    )
    torch.testing.assert_close(weights, weights.round(), atol=0.05, rtol=0)
    assert (weights.round().sum(1) == 1).all()


def test_several_labels_are_exact_and_drawn_one_by_one(tiny: TextBackbone, tiny_folder: Path) -> None:
    """By the data's labels a loop; by drawn ones, on average, what independent draws have: Σ p (1 − p) g² / labels²."""
    task, expert = with_several(make_task("toy", 3, 10)), random_expert(LORA, tiny, 0)
    objective = MATCH.model_copy(update={"scale": 2.0})  # no label is all but sure: fewer draws tell
    encoder = open_encoder(tiny_folder)
    candidates = embed(encoder, task.label_texts)
    plain, model = PlainExpert(LORA, expert), encoder.model
    plain.put_on(model)

    def gradient(of: Tensor) -> Tensor:
        plain.zero_grad()
        of.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return flat({s: {k: t.grad.clone() for k, t in h.items()} for s, h in plain.sites.items()})  # type: ignore[union-attr]

    by_data, by_chance = [], []
    for example in task.splits["train"]:
        logits = 2.0 * candidates @ plain_embedding(model, encoder.tokenizer(example.text)["input_ids"])
        right = torch.tensor([float(label in example.labels) for label in range(3)])
        by_data.append(gradient(nn.functional.binary_cross_entropy_with_logits(logits, right)).square())
        chances = logits.detach().sigmoid()
        each = torch.stack([gradient(logit) for logit in logits]).square()
        by_chance.append(((chances * (1 - chances)).unsqueeze(1) * each).sum(0) / 9)
    rows = Rows(tiny, objective, [(task, task.splits["train"], 1.0)])
    close(fisher(tiny, LORA, objective, expert, rows, batch=4), torch.stack(by_data).mean(0))
    expected = torch.stack(by_chance).mean(0)
    draws = [flat(fisher(tiny, LORA, objective, expert, rows, labels="true", name=f"draw {n}")) for n in range(150)]
    mean = torch.stack(draws).mean(0)
    assert float((mean - expected).norm() / expected.norm()) < 0.15
    again = fisher(tiny, LORA, objective, expert, rows, labels="true", name="draw 7", batch=3)
    close(again, draws[7])


def test_the_same_name_draws_the_same_labels(tiny: TextBackbone) -> None:
    expert, rows = random_expert(LORA, tiny, 0), make_rows(tiny, TASK)
    one, again, other = (
        flat(fisher(tiny, LORA, MATCH, expert, rows, labels="true", name=name)) for name in ("a", "a", "b")
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_it_is_exact_where_rows_share_live_candidates(kind: ExpertKind, tiny: TextBackbone, tiny_folder: Path) -> None:
    """The expert acts on the label texts too, which all rows meet: the reference embeds them anew for each row."""
    expert, live = random_expert(kind, tiny, 0), MATCH.model_copy(update={"live": True})
    encoder = open_encoder(tiny_folder)
    plain, model = PlainExpert(kind, expert), encoder.model
    plain.put_on(model)
    squares = []
    for example in TASK.splits["train"]:
        texts = [example.text, *TASK.label_texts]
        embedded = torch.stack([plain_embedding(model, encoder.tokenizer(text)["input_ids"]) for text in texts])
        plain.zero_grad()
        logits = 10.0 * embedded[1:] @ embedded[0]
        nn.functional.cross_entropy(logits, torch.tensor(example.label)).backward()  # type: ignore[no-untyped-call]
        squares.append(flat({s: {k: t.grad.square() for k, t in h.items()} for s, h in plain.sites.items()}))  # type: ignore[union-attr]
    rows = Rows(tiny, live, [(TASK, TASK.splits["train"], 1.0)])
    close(fisher(tiny, kind, live, expert, rows, batch=4), torch.stack(squares).mean(0))
