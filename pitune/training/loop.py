"""The packed training loop: E experts, each on its own slice, in one forward and one backward pass a step.

Packing never changes a result. Every expert has its own order of rows, its own loss, its own validation and its own
choice of checkpoint; nothing is normalised, clipped or scaled over the pack, and there is no dropout.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pitune.backbones import Backbone
from pitune.experts import Bank, Expert, ExpertKind
from pitune.objectives import Answers, Objective, Row, Rows, right
from pitune.training.engine import Engine, EngineSettings
from pitune.training.log import PackLog
from pitune.training.recipe import Recipe

LOOP_STATE, CHOSEN = "loop.json", "chosen.safetensors"


@dataclass(frozen=True)
class Member:
    """What one expert of a pack trains on: the slice's name, where the expert starts, its rows."""

    name: str
    start: Expert
    train: Rows
    validation: Rows


@dataclass(frozen=True)
class Trained:
    """One expert's outcome. ``error`` is set, in one line, where its loss stopped being a number."""

    expert: Expert
    curve: list[dict[str, float]]  # step, loss, validation (NaN where not measured)
    validation: dict[str, float]  # loss and accuracy at the chosen step
    step: int  # the chosen step
    error: str | None


class Seat(Protocol):
    """A worker's place in its gang, as the loop sees it."""

    rank: int
    world_size: int

    def progress(self, step: int, steps: int, rows: int) -> None:
        """Tell how far the pack is, and how many rows this worker has trained on in this step."""

    def resume(self) -> AbstractContextManager[Path | None]:
        """Lend a folder with the pack's last checkpoint, if there is one. Every worker calls."""

    def checkpoint(self, write: Callable[[Path], None], step: int) -> None:
        """Save a checkpoint for resuming: have ``write`` fill a folder. Every worker calls."""


class Alone:
    """The seat of a process without a gang: a notebook, a test, a benchmark."""

    rank, world_size = 0, 1

    def progress(self, step: int, steps: int, rows: int) -> None:
        """Say nothing."""

    def resume(self) -> AbstractContextManager[Path | None]:
        """There is nothing to resume."""
        return nullcontext()

    def checkpoint(self, write: Callable[[Path], None], step: int) -> None:
        """Keep nothing."""


class PackedModel(nn.Module):
    """The backbone with a bank attached, and what is asked of it: DeepSpeed's engine wraps one module."""

    def __init__(self, backbone: Backbone, bank: Bank, objective: Objective) -> None:
        super().__init__()
        self.backbone, self.bank, self.objective = backbone, bank, objective

    def forward(self, batches: Sequence[tuple[list[int], Any]], wants_answers: bool = False) -> Tensor | Answers:
        """Return the losses (E, rows) of batches, one after another, or the answers to a single one.

        Args:
            batches: each with the experts that its groups meet; the groups of all of them have equally many rows.
            wants_answers: return the answers.
        """
        if wants_answers:
            ((which, batch),) = batches
            return self.objective.answers(self.backbone, self.bank.only(which), batch)
        losses = [self.objective.losses(self.backbone, self.bank.only(which), batch) for which, batch in batches]
        return torch.cat(losses)


class PackTraining:
    """Trains one pack; :meth:`run` is the whole of it.

    Args:
        backbone: the frozen model.
        kind: the experts' kind.
        objective: gives losses and answers.
        members: the pack, E of them.
        recipe: how each of them is trained.
        engine: DeepSpeed's settings.
        seat: this worker's place in its gang.
        checkpoint_every: steps between checkpoints for resuming; None: none.
        log: where steps are logged, by the first worker; None: nowhere.
    """

    def __init__(
        self,
        backbone: Backbone,
        kind: ExpertKind,
        objective: Objective,
        members: Sequence[Member],
        recipe: Recipe,
        engine: EngineSettings,
        seat: Seat | None = None,
        checkpoint_every: int | None = None,
        log: PackLog | None = None,
    ) -> None:
        self.members, self.recipe, self.engine_settings = members, recipe, engine
        self.seat = seat or Alone()
        self.checkpoint_every, self.log = checkpoint_every, log if self.seat.rank == 0 else None
        bank = Bank(kind, [member.start for member in members]).to(backbone.device)
        self.model = PackedModel(backbone, bank, objective)
        self.backbone, self.objective = backbone, objective
        self.firsts = backbone.firsts(list(members[0].start))
        self.orders = [member.train.order(member.name, recipe.steps, recipe.batch_size) for member in members]
        self.losses = torch.zeros(recipe.steps, len(members), device=backbone.device)  # over this worker's rows
        self.validations: dict[int, list[tuple[float, float]]] = {}  # by step: each expert's loss and accuracy
        self.chosen: dict[int, tuple[int, Expert]] = {}  # by member: the step of its choice so far, and the expert then

    def run(self) -> list[Trained]:
        """Train the pack and return each expert's outcome, in the members' order. Every worker calls."""
        steps = self.recipe.steps
        with Engine(self.model, self.engine_settings, experts=len(self.members)) as engine:
            for step in range(self._resumed(engine), steps):
                rows = self._step(engine, step)
                if self.recipe.validates(step):
                    self._validate(engine, step)
                done = step + 1
                self.seat.progress(done, steps, rows)
                if self.log is not None:
                    self.log.step(done, steps, rows * self.seat.world_size, self.losses[step].tolist)
                if self.checkpoint_every and done % self.checkpoint_every == 0 and done < steps:
                    self.seat.checkpoint(functools.partial(self._save, engine, done), done)
            losses = engine.mean_over_workers(self.losses)
        return [self._outcome(index, losses[:, index].tolist()) for index in range(len(self.members))]

    def _step(self, engine: Engine, step: int) -> int:
        """Take one optimizer step: this worker's share of every expert's rows, in as many parts as accumulate.

        Returns:
            How many rows that were.
        """
        engine.set_learning_rate(self.recipe.rate(step))
        parts = self.engine_settings.gradient_accumulation
        if self.engine_settings.zero_stage == 3 and self.seat.world_size > 1:
            self._run_trunk(step)
        mine = [order[step][self.seat.rank :: self.seat.world_size] for order in self.orders]
        self.losses[step] = 0.0
        for part in range(parts):
            chosen = [rows[part::parts].tolist() for rows in mine]
            groups = [member.train.take(rows) for member, rows in zip(self.members, chosen, strict=True)]
            losses = engine(self._batches(groups)).mean(1)  # (E,)
            engine.backward(losses)
            bad = engine.step()
            self.losses[step] += losses.detach() / parts
            if bad is not None:
                self.losses[step, bad & (engine.loss_scale.to(bad.device) <= 1)] = math.nan  # it would stand still
        return sum(map(len, mine))

    def _batches(self, groups: Sequence[Sequence[Row]]) -> list[tuple[list[int], Any]]:
        """Batch the groups of all experts, by so many experts as a processor's cache holds the rows of.

        The backward pass undoes one batch after another, too: no expert's loss has to do with another's.
        """
        each = max(1, self.backbone.rows_at_once // len(groups[0]))
        everyone = list(range(len(groups)))
        parts = [everyone[start : start + each] for start in range(0, len(groups), each)]
        held = [[groups[index] for index in part] for part in parts]
        collate = functools.partial(self.objective.collate, self.backbone, self.firsts)
        return [(part, collate(rows)) for part, rows in zip(parts, held, strict=True)]

    def _run_trunk(self, step: int) -> None:
        """Run what no expert touches for the rows of all workers.

        Under ZeRO-3 each of them has a part of it, so all must run it equally often, whatever each has kept before.
        """
        for member, order in zip(self.members, self.orders, strict=True):
            rows = [replace(row.encoded, again=True) for row in member.train.take(order[step].tolist())]
            self.backbone.inputs(rows, self.firsts)

    @torch.no_grad()
    def _validate(self, engine: Engine, step: int) -> None:
        """Score every expert on its own validation rows and keep those that are the choice so far.

        A batch has as many rows of each member that has any left; so none is padded with rows that do not count.
        """
        sizes = [len(member.validation) for member in self.members]
        orders = [member.validation.by_cost() for member in self.members]
        sums = torch.zeros(len(self.members), 2)
        start = 0
        while start < max(sizes):
            which = [index for index, size in enumerate(sizes) if size > start]
            each = self.backbone.scored_at_once(len(which), self.firsts, self.model.bank.conditional)
            stop = min(start + each, *(sizes[index] for index in which))
            groups = [self.members[index].validation.take(orders[index][start:stop]) for index in which]
            batch = self.objective.collate(self.backbone, self.firsts, groups)
            found = engine([(which, batch)], wants_answers=True)
            sums[which, 0] += found.losses.sum(1).cpu()
            sums[which, 1] += right(found, groups).sum(1)
            start = stop
        # Every worker has the same rows. The mean makes the numbers, and so the choice, the same to the last bit.
        scores = engine.mean_over_workers(sums / torch.tensor(sizes).unsqueeze(1))
        self.validations[step] = [(float(loss), float(accuracy)) for loss, accuracy in scores]
        self._choose(engine, step)

    def _choose(self, engine: Engine, step: int) -> None:
        """Keep the experts that are better than their choice so far, or, where the last one counts, the last."""
        if self.recipe.select == "last":
            better = list(range(len(self.members))) if step + 1 == self.recipe.steps else []
        else:
            better = [index for index in range(len(self.members)) if self._is_best(index, step)]
        if better:
            whole = {name.removeprefix("bank."): tensor for name, tensor in engine.gathered().items()}
            for index in better:
                self.chosen[index] = step, self.model.bank.expert(index, whole)

    def _is_best(self, index: int, step: int) -> bool:
        loss = self.validations[step][index][0]
        if index not in self.chosen:
            return math.isfinite(loss)
        return loss < self.validations[self.chosen[index][0]][index][0]

    def _outcome(self, index: int, losses: list[float]) -> Trained:
        member = self.members[index]
        curve = [{"step": step + 1, "loss": loss, "validation": math.nan} for step, loss in enumerate(losses)]
        for step, found in self.validations.items():
            curve[step]["validation"] = found[index][0]
        step, expert = self.chosen.get(index, (-1, member.start))
        loss, accuracy = self.validations[step][index] if step >= 0 else (math.nan, math.nan)
        broken = next((point for point in curve if not math.isfinite(point["loss"])), None)
        error = None
        if broken is not None:
            wrong = f"the loss is {broken['loss']} at step {broken['step']}"
            error = f"expert {member.name}: {wrong}; lower training.*.learning_rate"
        elif not math.isfinite(loss):
            error = f"expert {member.name}: the validation loss is {loss}; lower training.*.learning_rate"
        return Trained(expert, curve, {"loss": loss, "accuracy": accuracy}, step + 1, error)

    # --- resuming ----------------------------------------------------------------------------------------------

    def _save(self, engine: Engine, done: int, folder: Path) -> None:
        """Write into ``folder`` all that :meth:`_resumed` needs to go on after ``done`` steps."""
        engine.save(folder)
        if self.seat.rank == 0:
            flat = {
                f"{index}/{site}/{key}": tensor
                for index, (_, expert) in self.chosen.items()
                for site, held in expert.items()
                for key, tensor in held.items()
            }
            save_file(flat, folder / CHOSEN)
        state = {
            "done": done,
            "losses": self.losses.tolist(),
            "validations": list(self.validations.items()),
            "chosen": [(index, step) for index, (step, _) in self.chosen.items()],
        }
        (folder / f"{self.seat.rank}-{LOOP_STATE}").write_text(json.dumps(state))

    def _resumed(self, engine: Engine) -> int:
        """Take up the last checkpoint, if there is one, and return the step to go on with."""
        with self.seat.resume() as folder:
            if folder is None:
                return 0
            engine.load(folder)
            state = json.loads((folder / f"{self.seat.rank}-{LOOP_STATE}").read_text())
            kept = load_file(folder / CHOSEN)
        self.losses = torch.tensor(state["losses"], device=self.losses.device)
        self.validations = {step: [(loss, right) for loss, right in found] for step, found in state["validations"]}
        self.chosen = {index: (step, {}) for index, step in state["chosen"]}
        for name, tensor in kept.items():
            index, site, key = name.split("/")
            self.chosen[int(index)][1].setdefault(site, {})[key] = tensor
        return int(state["done"])
