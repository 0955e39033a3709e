"""Learning what stands between frozen encoders: a picture is to mean what its caption means.

Contrastive: a picture meets *all* captions of the training pairs (arXiv 2103.00020 has a batch's only), so that what a
batch holds does not matter. What is learnt is small; the encoders look at each picture once. ``pitune bridge`` and
``pitune align`` differ in their :class:`Learner` only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from pitune.backbones import Backbone, Encoded
from pitune.errors import PituneError
from pitune.progress import Stage
from pitune.store import Manifest, Store, fingerprint_of
from pitune.tasks.pictures import Picture
from pitune.tasks.task import SPLITS, Example, Task
from pitune.training.settings import PairTraining

CHECKPOINT = "checkpoint"
SCALE = 20.0
"""Logits are the cosine times this, as an objective's are."""
WEIGHT_DECAY = 0.05
TOP = (1, 5, 10)
"""The right caption is among the first so many: what retrieval is judged by."""
AT_ONCE = 256
"""Pictures between two reports of progress."""
Tell = Callable[[Sequence[Stage]], None]


class Learner(ABC):
    """What learns from pairs.

    Attributes:
        backbone: encodes pictures.
        learnt: the module whose parameters are learnt, and nothing else; float32.
    """

    backbone: Backbone
    learnt: nn.Module

    @abstractmethod
    def look(self, pictures: Sequence[Picture]) -> None:
        """Let the frozen vision encoder look at pictures, and keep on the disk what it sees."""

    @abstractmethod
    def captions(self, texts: Sequence[str]) -> Tensor:
        """Return what the frozen text encoder makes of captions: (captions, width)."""

    def begin(self, pictures: Sequence[Encoded], captions: Tensor) -> None:  # noqa: B027 - most have nothing to do
        """See all training pictures and captions (captions, width), before anything is learnt."""

    @abstractmethod
    def cosines(self, pictures: Sequence[Encoded], captions: Tensor) -> Tensor:
        """Return the cosines of pictures with captions, as :meth:`captions` gave them: (pictures, captions)."""

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Return what has been learnt as an artifact's files."""


def learn(
    store: Store,
    artifact: str,
    inputs: Mapping[str, Any],
    open_learner: Callable[[], Learner],
    tasks: Sequence[Task],
    how: PairTraining,
    tell: Tell,
) -> Manifest:
    """Learn from tasks' pairs, or find it done; what was interrupted goes on after its last epoch.

    Args:
        store: where the artifact goes, and after each epoch a checkpoint.
        artifact: its name.
        inputs: what else it is made from, for its fingerprint.
        open_learner: makes the learner; random numbers are seeded.
        tasks: whose training pictures are the examples and whose labels' texts their captions.
        how: it learns.
        tell: is told how far it is.

    Returns:
        The artifact's manifest, with the retrieval figures of validation and test pictures in ``retrieval``.

    Raises:
        PituneError: a task is not of pictures alone, the loss is not a number, and whatever ``open_learner`` raises.
    """
    for task in tasks:
        if task.modality != "image":
            raise PituneError(
                f"task {task.name}: its examples are {task.modality}; a {artifact} is trained on pictures"
            )
    said = {
        **inputs,
        "training": how.model_dump(mode="json"),
        "tasks": {task.name: task.fingerprint for task in tasks},
    }
    with store.lock():
        if not store.is_current(artifact, fingerprint_of(said)):
            torch.manual_seed(0)
            _Training(open_learner(), tasks, how, tell).run(store, artifact, said)
    found = store.manifest(artifact)
    assert found is not None
    return found


class _Pairs(NamedTuple):
    """Pictures, the captions as the text encoder gives them (captions, width), and which one is whose."""

    rows: list[Encoded]
    captions: Tensor
    right: Tensor


class _Training:
    """Trains one learner.

    Args:
        learner: at its start.
        tasks: see :func:`learn`.
        how: likewise.
        tell: likewise.
    """

    def __init__(self, learner: Learner, tasks: Sequence[Task], how: PairTraining, tell: Tell) -> None:
        self.learner, self.learnt, self.tasks, self.how, self.tell = learner, learner.learnt, tasks, how, tell
        self.optimizer = torch.optim.AdamW(self.learnt.parameters(), how.learning_rate, weight_decay=WEIGHT_DECAY)
        self.best: dict[str, Tensor] = {}
        self.scores = [math.inf]  # the validation loss of the start and of each epoch

    def run(self, store: Store, artifact: str, inputs: Mapping[str, Any]) -> None:
        """Train, and commit what the epoch with the lowest validation loss has learnt."""
        fingerprint = fingerprint_of(inputs)
        self._look()
        pairs, held_out = self._training_pairs(), [self._pairs_of(task, "validation") for task in self.tasks]
        self.learner.begin(pairs.rows, pairs.captions)
        self._resume(store, fingerprint)
        for epoch in range(len(self.scores) - 1, self.how.epochs):
            self._tell_epoch(epoch)
            self._epoch(pairs, epoch)
            loss = sum(self._loss(one) for one in held_out) / len(held_out)
            if loss < min(self.scores):
                self.best = {name: tensor.clone() for name, tensor in self.learnt.state_dict().items()}
            self.scores.append(loss)
            store.commit(CHECKPOINT, {"state.safetensors": save(self._state())}, fingerprint, losses=self.scores[1:])
        self._tell_epoch(self.how.epochs)
        if not self.best:
            raise PituneError(f"the {artifact}'s loss is not a number; lower training.learning_rate")
        self.learnt.load_state_dict(self.best)
        facts = {"inputs": inputs, "pairs": len(pairs.rows), "losses": self.scores[1:], "retrieval": self._retrieval()}
        store.commit(artifact, self.learner.files(), fingerprint, **facts)
        store.discard(CHECKPOINT)

    # --- pairs -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Have the vision encoder look at every picture once."""
        pictures = [one.picture for task in self.tasks for split in SPLITS for one in task.splits[split] if one.picture]
        for start in range(0, len(pictures), AT_ONCE):
            self.tell([Stage("pictures", len(pictures), 0, start)])
            self.learner.look(pictures[start : start + AT_ONCE])
        self.tell([Stage("pictures", len(pictures), 0, len(pictures))])

    def _training_pairs(self) -> _Pairs:
        """Return the training pictures of all tasks, with the captions of them all."""
        of = [(one, caption) for task in self.tasks for one, caption in _captioned(task, "train")]
        return self._pairs([one for one, _ in of], [caption for _, caption in of])

    def _pairs_of(self, task: Task, split: str) -> _Pairs:
        """Return the pictures of one task, with all its captions as the candidates."""
        of = _captioned(task, split)
        return self._pairs([one for one, _ in of], [caption for _, caption in of], task.label_texts)

    def _pairs(self, examples: Sequence[Example], right: Sequence[str], captions: Sequence[str] = ()) -> _Pairs:
        known = list(dict.fromkeys([*captions, *right]))
        place = {caption: index for index, caption in enumerate(known)}
        whose = torch.tensor([place[caption] for caption in right])
        return _Pairs(self.learner.backbone.encode(examples), self.learner.captions(known), whose)

    # --- learning ----------------------------------------------------------------------------------------------

    def _epoch(self, pairs: _Pairs, epoch: int) -> None:
        """Go over the pairs once. The order and what dropout drops depend on the epoch alone."""
        size, count = self.how.batch_size, len(pairs.rows)
        steps = math.ceil(count / size)
        with torch.random.fork_rng():
            torch.manual_seed(epoch)
            order = torch.randperm(count)
            self.learnt.train()
            for step in range(steps):
                done = (epoch * steps + step) / (self.how.epochs * steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.how.learning_rate * (1 + math.cos(math.pi * done)) / 2
                which = order[step * size : (step + 1) * size]
                logits = self._logits(pairs, which)
                nn.functional.cross_entropy(logits, pairs.right[which].to(logits.device)).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.learnt.eval()

    def _logits(self, pairs: _Pairs, which: Sequence[int] | Tensor) -> Tensor:
        """Return the pictures' cosines with all captions, scaled: (pictures, captions)."""
        return SCALE * self.learner.cosines([pairs.rows[index] for index in which], pairs.captions)

    # --- judging -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _all_logits(self, pairs: _Pairs) -> Tensor:
        size, count = self.learner.backbone.rows_at_once, len(pairs.rows)
        parts = [self._logits(pairs, range(at, min(at + size, count))) for at in range(0, count, size)]
        return torch.cat(parts).cpu()

    def _loss(self, pairs: _Pairs) -> float:
        return float(nn.functional.cross_entropy(self._all_logits(pairs), pairs.right))

    def _retrieval(self) -> dict[str, dict[str, Any]]:
        """Return for each task how often the right caption is among the first 1, 5 and 10 of all its captions."""
        found: dict[str, dict[str, Any]] = {}
        for task in self.tasks:
            found[task.name] = {"captions": len(task.label_texts)}
            for split in ("validation", "test"):
                pairs = self._pairs_of(task, split)
                found[task.name][split] = recalls(self._all_logits(pairs), pairs.right)
        return found

    # --- going on ----------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        moments = self.optimizer.state_dict()["state"]
        state = {f"now.{name}": tensor for name, tensor in self.learnt.state_dict().items()}
        state |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        return state | {f"adam.{i}.{name}": tensor for i, held in moments.items() for name, tensor in held.items()}

    def _resume(self, store: Store, fingerprint: str) -> None:
        """Take up where the last finished epoch ended, if there is one."""
        manifest = store.manifest(CHECKPOINT)
        if manifest is None or not store.is_current(CHECKPOINT, fingerprint):
            return
        state = load(store.read(CHECKPOINT, "state.safetensors"))
        self.learnt.load_state_dict(_under("now", state))
        self.best = _under("best", state)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("adam", state).items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.scores += manifest["losses"]

    def _tell_epoch(self, epoch: int) -> None:
        self.tell([Stage("epochs", self.how.epochs, 0, epoch)])


def _captioned(task: Task, split: str) -> list[tuple[Example, str]]:
    """Return a split's examples with their captions; one that has several labels comes with each of them."""
    return [(one, task.label_texts[label]) for one in task.splits[split] for label in one.labels]


def recalls(logits: Tensor, right: Tensor) -> dict[str, float]:
    """Return how often the right candidate is among the first 1, 5 and 10.

    Args:
        logits: (rows, candidates).
        right: (rows,), the right one's index; who is equal to it counts half as before it.
    """
    of_right = logits.gather(1, right.unsqueeze(1))
    before = (logits > of_right).sum(1) + ((logits == of_right).sum(1) - 1) / 2
    return {f"recall@{most}": float((before < most).float().mean()) for most in TOP}


def _under(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
