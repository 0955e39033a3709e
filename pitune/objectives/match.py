"""Matching: an example's embedding meets those of its task's candidate texts; the cosine, scaled, is the logit.

A task has no head of its own, so zero-shot works and all tasks share one parameter space. A row meets its own task's
candidates only: those of other tasks in the batch are left out, not multiplied by zero.

Where one candidate is right the loss is the cross-entropy. Where several may be (a multilabel task), each is right or
wrong by itself: the loss is the mean over the candidates of the binary cross-entropy with logits. The logit is the same
scaled cosine, without a bias of its own, so that experts of both families share one parameter space. The backbone alone
then says little of *whether* a candidate is right, for its cosines with texts are mostly above 0; but they rank the
examples by *how well* it fits, and mean average precision, by which zero-shot is scored too, needs no threshold.

A candidate that no expert touches is the mean of its text's embeddings in all of its task's templates (arXiv
2103.00020, section 3.1.4). One that experts act on is read in one sentence, ``live_template``: with learned words
around it, as in CoOp (arXiv 2109.01134), there is nothing to average. Experts that are conditional (CoCoOp, arXiv
2203.05557) read it beside each example anew: as many texts as pairs of an example and a candidate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pitune.backbones import Backbone, Encoded, Inputs
from pitune.objectives.base import Acting, Answers, Objective, Row
from pitune.tasks.task import Task, has_a_place

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Candidates:
    """A task's candidate texts, encoded, in the order of its labels.

    Attributes:
        texts: each in the sentence in which experts act on it.
        averaged: each in all of the task's templates, whose mean it is where no expert acts on it.
    """

    texts: tuple[Encoded, ...]
    averaged: tuple[tuple[Encoded, ...], ...]


@dataclass(frozen=True)
class MatchBatch:
    """E groups of rows and, for each group, the candidates of the tasks that its rows are of.

    Attributes:
        examples: E · rows of them.
        candidates: E · most; groups with fewer are filled up with what no row meets.
        met: (E, rows, most), whether a row meets a candidate.
        right: (E, rows, most), whether a candidate is right for a row.
        several: (E, rows), whether any number of them may be; None: of all rows exactly one is.
        shift: (E, rows), the place of the first candidate of a row's own task.
    """

    examples: Inputs
    candidates: Inputs
    met: Tensor
    right: Tensor
    several: Tensor | None
    shift: Tensor


class Match(Objective):
    """Cosine with candidates' texts, softmax over them, or where several may be right a sigmoid for each."""

    kind: Literal["match"] = "match"
    scale: float = Field(20.0, gt=0, description="logits are the cosine times this")
    live: bool | None = Field(
        None, description="experts act on candidates' texts too; null: where a tower of its own reads them"
    )
    live_template: str | None = Field(
        None, description="the sentence of a candidate that experts act on; null: the first of its task's templates"
    )

    @field_validator("live_template")
    @classmethod
    def _has_a_place(cls, template: str | None) -> str | None:
        return None if template is None else has_a_place(template)

    def prepare(self, backbone: Backbone, task: Task) -> Candidates:
        """Encode the task's label texts in their templates."""
        live = self.live_template or task.templates[0]
        texts = backbone.encode_texts([live.replace("{}", text) for text in task.label_texts])
        all_of = backbone.encode_texts([one.replace("{}", text) for text in task.label_texts for one in task.templates])
        each = len(task.templates)
        return Candidates(tuple(texts), tuple(tuple(all_of[at : at + each]) for at in range(0, len(all_of), each)))

    def shares(self, backbone: Backbone, firsts: Mapping[str, int]) -> bool:
        """Say whether an expert acts on candidates, which all rows of its group meet."""
        apart = backbone.texts_tower != backbone.examples_tower
        return backbone.texts_tower in firsts and (apart if self.live is None else self.live)

    def candidates(self, prepared: Candidates) -> Sequence[Encoded]:
        """Return the texts, each in the sentence in which experts act on it."""
        return prepared.texts

    def texts_at_once(self, experts: int, rows: int, candidates: int, most: int, conditional: bool) -> int:
        """Return how many texts keep what their gradients need at once: of conditional experts those of one part."""
        if not conditional:
            return experts * candidates
        return min(experts * rows * candidates, max(experts * rows, most))

    def collate(self, backbone: Backbone, firsts: Mapping[str, int], groups: Sequence[Sequence[Row]]) -> MatchBatch:
        """Batch the rows, and the candidates of each group's tasks."""
        shifts = [_shifts(rows) for rows in groups]
        most = max(sum(len(task.texts) for task in tasks) for tasks in shifts)
        met, right = torch.zeros((2, len(groups), len(groups[0]), most), dtype=torch.bool)
        shift = torch.tensor([[tasks[row.task] for row in rows] for tasks, rows in zip(shifts, groups, strict=True)])
        several = torch.tensor([[isinstance(row.target, tuple) for row in rows] for rows in groups])
        for e, rows in enumerate(groups):
            for r, row in enumerate(rows):
                met[e, r, shift[e, r] : shift[e, r] + len(row.task.texts)] = True
                for label in row.target if several[e, r] else (row.target,):
                    right[e, r, shift[e, r] + label] = True
        place = backbone.device
        return MatchBatch(
            backbone.inputs([row.encoded for rows in groups for row in rows], firsts),
            self._candidates(backbone, firsts, shifts, most),
            met.to(place),
            right.to(place),
            several.to(place) if several.any() else None,
            shift.to(place),
        )

    def _candidates(
        self, backbone: Backbone, firsts: Mapping[str, int], shifts: Sequence[Mapping[Candidates, int]], most: int
    ) -> Inputs:
        """Return the candidates of each group's tasks, filled up to ``most``; each frozen one is looked up once."""
        if self.shares(backbone, firsts):
            live = [[text for task in tasks for text in task.texts] for tasks in shifts]
            return backbone.inputs(_filled(live, most), firsts)
        wanted = _filled([[texts for task in tasks for texts in task.averaged] for tasks in shifts], most)
        keys = [tuple(text.key for text in texts) for texts in wanted]
        known = dict(zip(keys, wanted, strict=True))
        place = {key: index for index, key in enumerate(known)}
        embeddings = backbone.averaged(list(known.values()))
        return Inputs(backbone.texts_tower, embeddings=embeddings[[place[key] for key in keys]])

    def losses(self, backbone: Backbone, acting: Acting, batch: MatchBatch, luck: Tensor | None = None) -> Tensor:
        """Return the loss of each row, (E, rows)."""
        logits = self.logits(backbone, acting, batch)
        right = batch.right if luck is None else self.drawn(logits, luck, batch.several)
        return self.row_losses(logits, right, batch.several)

    def both_losses(self, backbone: Backbone, acting: Acting, batch: MatchBatch, luck: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses with the batch's candidates and with drawn ones, of the same logits."""
        logits = self.logits(backbone, acting, batch)
        drawn = self.drawn(logits, luck, batch.several)
        return self.row_losses(logits, batch.right, batch.several), self.row_losses(logits, drawn, batch.several)

    def answers(self, backbone: Backbone, acting: Acting, batch: MatchBatch) -> Answers:
        """Return the likeliest candidate of each row, its place among its task's labels, and its probability.

        Of a row that may have several: the places of the candidates that are likelier right than wrong, and the
        logits of all of them. (The sigmoid of a large one is 1 in float32, which ranks nothing.)
        """
        logits = self.logits(backbone, acting, batch)
        likely, places = logits.softmax(-1).max(-1)
        answers, scores = (places - batch.shift).tolist(), likely.tolist()
        for e, r in [] if batch.several is None else batch.several.nonzero().tolist():
            scores[e][r] = logits[e, r][batch.met[e, r]].tolist()
            answers[e][r] = tuple(place for place, logit in enumerate(scores[e][r]) if logit > 0)
        return Answers(self.row_losses(logits, batch.right, batch.several), answers, scores)

    def logits(self, backbone: Backbone, acting: Acting, batch: MatchBatch) -> Tensor:
        """Score each group's candidates: (E, rows, most), float32; those that a row does not meet get -inf."""
        each_anew = acting.conditional and batch.candidates.embeddings is None
        cosines = (_cosines_anew if each_anew else _cosines)(backbone, acting, batch)
        return (self.scale * cosines).masked_fill(~batch.met, float("-inf"))

    def row_losses(self, logits: Tensor, right: Tensor, several: Tensor | None) -> Tensor:
        """Return the loss of each row, (E, rows): the cross-entropy, or the mean of the binary ones.

        Args:
            logits: (E, rows, most).
            right: (E, rows, most), which candidates are.
            several: (E, rows), whether any number of them may be; None: of all rows exactly one is.
        """
        losses = -logits.log_softmax(-1).masked_fill(~right, 0.0).sum(-1)
        if several is None:
            return losses
        met = logits > float("-inf")
        each = nn.functional.binary_cross_entropy_with_logits(
            logits.masked_fill(~met, 0.0), right.to(logits), reduction="none"
        )
        return torch.where(several, each.masked_fill(~met, 0.0).sum(-1) / met.sum(-1), losses)

    def drawn(self, logits: Tensor, luck: Tensor, several: Tensor | None) -> Tensor:
        """Draw which candidates are right for each row of ``logits`` (E, rows, most): (E, rows, most).

        By ``luck`` (E, rows) one of them, from the softmax. For ``several`` rows (E, rows) it seeds a number for each
        candidate, which is drawn by itself, with the probability that its sigmoid gives.
        """
        reached = logits.detach().double().softmax(-1).cumsum(-1)
        met = logits > float("-inf")
        last = met.long().cumsum(-1).argmax(-1)  # the last candidate that the row meets
        places = torch.minimum((reached <= luck.to(reached).unsqueeze(-1)).sum(-1), last)
        right = nn.functional.one_hot(places, logits.shape[-1]).bool()
        for e, r in [] if several is None else several.nonzero().tolist():
            mine, generator = met[e, r], np.random.default_rng(int(luck[e, r] * 2**32))
            numbers = torch.from_numpy(generator.random(int(mine.sum()))).to(logits.device)
            right[e, r] = False
            right[e, r, mine] = numbers < logits[e, r, mine].detach().sigmoid()
        return right


def _cosines(backbone: Backbone, acting: Acting, batch: MatchBatch) -> Tensor:
    """Return the cosines of all examples with all candidates of their group: (E, rows, most)."""
    with acting.attached(backbone.model):
        examples, candidates = backbone(batch.examples), backbone(batch.candidates)
    groups = len(batch.met)
    examples, candidates = (found.view(groups, -1, found.shape[-1]) for found in (examples, candidates))
    return torch.bmm(examples, candidates.transpose(1, 2))


def _cosines_anew(backbone: Backbone, acting: Acting, batch: MatchBatch) -> Tensor:
    """Return the same, (E, rows, most), where an example's candidates are read beside it; of its own task's only.

    As many texts as may be run at once make a part. Where there are several, none keeps what its gradient needs: the
    backward pass runs a part again, so that the room that texts take does not grow with the classes.
    """
    with acting.attached(backbone.model):
        examples = backbone(batch.examples)  # (E · rows, width)
    groups, _, most = batch.met.shape
    own = int(batch.met.sum(-1).max())  # candidates of the largest task
    each = max(1, backbone.rows_at_once // len(examples))
    place, shift = torch.arange(most, device=examples.device), batch.shift.unsqueeze(-1)
    group = most * torch.arange(groups, device=examples.device).view(-1, 1, 1)

    def read(start: int) -> Tensor:
        which = group + (shift + place[start : min(start + each, own)]).clamp(max=most - 1)  # (E, rows, part)
        # Words stand among the embeddings, so no layer of these texts has run before.
        texts = {name: tensor[which.flatten()] for name, tensor in batch.candidates.tensors.items()}
        with acting.attached(backbone.model, examples):
            found = backbone(replace(batch.candidates, tensors=texts))
        return torch.bmm(found.view(len(examples), -1, found.shape[-1]), examples.unsqueeze(-1)).view(which.shape)

    starts = range(0, own, each)
    run: Callable[[int], Tensor] = read
    if len(starts) > 1 and torch.is_grad_enabled():
        run = functools.partial(checkpoint, read, use_reentrant=False, preserve_rng_state=False)
    cosines = torch.cat([run(start) for start in starts], -1)  # (E, rows, own)
    return cosines.gather(-1, (place - shift).clamp(0, own - 1))


def _filled(groups: Sequence[Sequence[T]], most: int) -> list[T]:
    """Return the things of all groups, one group after another, each filled up to ``most`` with its first."""
    return [one for held in groups for one in [*held, *[held[0]] * (most - len(held))]]


def _shifts(rows: Sequence[Row]) -> dict[Candidates, int]:
    """Return the tasks of a group, each with the place of its first candidate among those of all."""
    found: dict[Candidates, int] = {}
    place = 0
    for row in rows:
        if row.task not in found:
            found[row.task] = place
            place += len(row.task.texts)
    return found
