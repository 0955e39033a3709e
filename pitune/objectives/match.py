"""Matching: an example's embedding meets those of its task's candidate texts; the cosine, scaled, is the logit.

A task has no head of its own, so zero-shot works and all tasks share one parameter space. A row meets its own task's
candidates only: those of other tasks in the batch are left out, not multiplied by zero.

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

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pitune.backbones.base import Backbone, Encoded, Inputs
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
        labels: (E, rows), the right one's place among the group's candidates.
        shift: (E, rows), the place of the first candidate of a row's own task.
    """

    examples: Inputs
    candidates: Inputs
    met: Tensor
    labels: Tensor
    shift: Tensor


class Match(Objective):
    """Cosine with candidates' texts, softmax over them."""

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

    def collate(self, backbone: Backbone, firsts: Mapping[str, int], groups: Sequence[Sequence[Row]]) -> MatchBatch:
        """Batch the rows, and the candidates of each group's tasks."""
        shifts = [_shifts(rows) for rows in groups]
        most = max(sum(len(task.texts) for task in tasks) for tasks in shifts)
        met = torch.zeros((len(groups), len(groups[0]), most), dtype=torch.bool)
        shift = torch.tensor([[tasks[row.task] for row in rows] for tasks, rows in zip(shifts, groups, strict=True)])
        for e, rows in enumerate(groups):
            for r, row in enumerate(rows):
                met[e, r, shift[e, r] : shift[e, r] + len(row.task.texts)] = True
        labels = shift + torch.tensor([[row.target for row in rows] for rows in groups])
        place = backbone.device
        return MatchBatch(
            backbone.inputs([row.encoded for rows in groups for row in rows], firsts),
            self._candidates(backbone, firsts, shifts, most),
            met.to(place),
            labels.to(place),
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
        return self.row_losses(logits, batch.labels if luck is None else self.drawn(logits, luck))

    def both_losses(self, backbone: Backbone, acting: Acting, batch: MatchBatch, luck: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses with the batch's candidates and with drawn ones, of the same logits."""
        logits = self.logits(backbone, acting, batch)
        return self.row_losses(logits, batch.labels), self.row_losses(logits, self.drawn(logits, luck))

    def answers(self, backbone: Backbone, acting: Acting, batch: MatchBatch) -> Answers:
        """Return the likeliest candidate of each row, its place among its task's labels, and its probability."""
        logits = self.logits(backbone, acting, batch)
        scores, places = logits.softmax(-1).max(-1)
        return Answers(self.row_losses(logits, batch.labels), (places - batch.shift).tolist(), scores)

    def logits(self, backbone: Backbone, acting: Acting, batch: MatchBatch) -> Tensor:
        """Score each group's candidates: (E, rows, most), float32; those that a row does not meet get -inf."""
        each_anew = acting.conditional and batch.candidates.embeddings is None
        cosines = (_cosines_anew if each_anew else _cosines)(backbone, acting, batch)
        return (self.scale * cosines).masked_fill(~batch.met, float("-inf"))

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy (E, rows) of logits (E, rows, most) with the right candidates (E, rows)."""
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)

    def drawn(self, logits: Tensor, luck: Tensor) -> Tensor:
        """Draw a candidate for each row of ``logits`` (E, rows, most) from the softmax, by ``luck`` (E, rows)."""
        reached = logits.detach().double().softmax(-1).cumsum(-1)
        last = (logits > float("-inf")).long().cumsum(-1).argmax(-1)  # the last candidate that the row meets
        return torch.minimum((reached <= luck.to(reached).unsqueeze(-1)).sum(-1), last)


def _cosines(backbone: Backbone, acting: Acting, batch: MatchBatch) -> Tensor:
    """Return the cosines of all examples with all candidates of their group: (E, rows, most)."""
    with acting.attached(backbone.model):
        examples, candidates = backbone(batch.examples), backbone(batch.candidates)
    groups = len(batch.labels)
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
