"""What an objective is: it prepares a task for a backbone, and gives losses and answers for rows of examples.

Training, Fisher, tuning, validation and scoring call nothing else. Rows come as E groups of equal size, one for each
expert that acts; what is right for a row (its *target*) means something to the objective only.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from pitune.backbones import Backbone, Encoded
from pitune.settings import Settings
from pitune.tasks.task import Example, Task, spelled


@dataclass(frozen=True)
class Row:
    """One example, ready for a backbone: its task as the objective prepared it, its input, and what is right."""

    task: Any
    encoded: Encoded
    target: Any


@dataclass(frozen=True)
class Answers:
    """What E experts say to their rows.

    Attributes:
        losses: (E, rows), float32.
        answers: the answer to each row, E lists; comparable with the rows' targets.
        scores: how sure the expert is of each answer, E lists: a probability where the objective has one. Of a row that
            may have several labels, a list of how well each label of its task scores.
    """

    losses: Tensor
    answers: list[list[Any]]
    scores: list[list[Any]]


class Acting(Protocol):
    """Who acts on a backbone: a bank, some of its experts, a mixture, or nobody."""

    @property
    def conditional(self) -> bool:
        """Whether they act on candidates' texts beside each example otherwise."""

    def attached(self, model: nn.Module, examples: Tensor | None = None) -> AbstractContextManager[None]:
        """Act on ``model`` inside the block.

        Those who are conditional act on texts beside ``examples``, embeddings (E · rows, width): a group of texts each.
        """


class _Nobody:
    """No expert: the backbone alone."""

    conditional = False

    @contextlib.contextmanager
    def attached(self, model: nn.Module, examples: Tensor | None = None) -> Iterator[None]:
        """Leave ``model`` as it is."""
        yield


NOBODY = _Nobody()
"""The backbone alone, which is what zero-shot means."""


class Objective(Settings, ABC):
    """How a backbone's outputs become a loss and an answer: its settings, and all that differs between objectives.

    To add one: subclass this in a file of its own and name it in ``pitune.objectives.OBJECTIVES``.
    """

    kind: str

    @abstractmethod
    def prepare(self, backbone: Backbone, task: Task) -> Any:
        """Return what all rows of ``task`` share (its candidates, encoded); small, computed once."""

    def target(self, task: Task, example: Example) -> Any:
        """Return what is right for an example; by default its label."""
        return example.label

    def text(self, task: Task, answer: Any) -> str | list[str]:
        """Return an answer, or a target, as tables and metrics have it; by default a label's value, or their list."""
        return spelled(answer, task.labels) if isinstance(answer, int | tuple) else str(answer)

    def shares(self, backbone: Backbone, firsts: Mapping[str, int]) -> bool:
        """Say whether rows of one expert share a computation that the expert acts in; by default they do not.

        Per-example gradients then come from one shared pass, not from a copy of the expert for each row.
        """
        return False

    def candidates(self, prepared: Any) -> Sequence[Encoded]:
        """Return the texts of a prepared task that experts may act on; by default none."""
        return ()

    def texts_at_once(self, experts: int, rows: int, candidates: int, most: int, conditional: bool) -> int:
        """Return how many of those texts a batch keeps for its backward pass at once; by default each expert's once.

        Args:
            experts: E.
            rows: of each expert.
            candidates: that a row meets.
            most: texts that are run at once, where the batch itself is no larger.
            conditional: the experts act on texts beside each example otherwise.
        """
        return experts * candidates

    @abstractmethod
    def collate(self, backbone: Backbone, firsts: Mapping[str, int], groups: Sequence[Sequence[Row]]) -> Any:
        """Return a batch of E groups of equally many rows, each row with its own task.

        Args:
            backbone: who reads them.
            firsts: the lowest layer with an expert, by tower; what lies below runs here, if it was not kept.
            groups: E of them.
        """

    @abstractmethod
    def losses(self, backbone: Backbone, acting: Acting, batch: Any, luck: Tensor | None = None) -> Tensor:
        """Return the loss of each row, (E, rows), float32.

        Args:
            backbone: who reads the batch.
            acting: whose E experts act.
            batch: from :meth:`collate`.
            luck: (E, rows) in [0, 1): draw the targets from the model's own distribution by these numbers, in place of
                the batch's.
        """

    def both_losses(self, backbone: Backbone, acting: Acting, batch: Any, luck: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses with the batch's targets and with targets drawn by ``luck``, (E, rows) each.

        By default from a pass for each; an objective that has both from one says so here.
        """
        return self.losses(backbone, acting, batch), self.losses(backbone, acting, batch, luck)

    @abstractmethod
    def answers(self, backbone: Backbone, acting: Acting, batch: Any) -> Answers:
        """Return the answers of E experts to their rows; no gradient is needed."""
