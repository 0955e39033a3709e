"""The packed training loop: E experts, each on its own slice, in one forward and one backward pass a step.

Packing never changes a result. Every expert has its own order of rows, its own loss, its own validation and its own
choice of checkpoint; nothing is normalised, clipped or scaled over the pack, and there is no dropout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pitune.backbones.text import Inputs, TextBackbone
from pitune.experts import Bank, Expert, ExpertKind
from pitune.training.engine import Engine, EngineSettings
from pitune.training.examples import Rows, collate, group_losses, label_logits, stack_candidates
from pitune.training.recipe import Recipe

LOOP_STATE, BEST = "loop.json", "best.safetensors"


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

    def progress(self, step: int, steps: int) -> None:
        """Tell how far the pack is."""

    def resume(self) -> Path | None:
        """Return the folder of the pack's last checkpoint, if there is one."""

    def checkpoint(self, write: Callable[[Path], None], step: int) -> None:
        """Save a checkpoint for resuming; every worker calls."""


class Alone:
    """The seat of a process without a gang: a notebook, a test, a benchmark."""

    rank, world_size = 0, 1

    def progress(self, step: int, steps: int) -> None:
        """Say nothing."""

    def resume(self) -> None:
        """There is nothing to resume."""

    def checkpoint(self, write: Callable[[Path], None], step: int) -> None:
        """Keep nothing."""


class PackedModel(nn.Module):
    """The backbone with a bank attached: logits (E, rows, most labels) of E groups of rows."""

    def __init__(self, backbone: TextBackbone, bank: Bank, first: int) -> None:
        super().__init__()
        self.backbone, self.bank, self.first = backbone, bank, first

    def forward(self, inputs: Inputs, candidates: Tensor, real: Tensor) -> Tensor:
        """Score each row's candidates; see :func:`pitune.training.examples.label_logits`."""
        with self.bank.attached(self.backbone.model):
            embeddings = self.backbone(inputs, self.first)
        return label_logits(embeddings, candidates, real, self.backbone.settings.scale)


class PackTraining:
    """Trains one pack; :meth:`run` is the whole of it.

    Args:
        backbone: the frozen encoder.
        kind: the experts' kind.
        members: the pack, E of them.
        recipe: how each of them is trained.
        engine: DeepSpeed's settings.
        seat: this worker's place in its gang.
        checkpoint_every: steps between checkpoints for resuming; None: none.
    """

    def __init__(
        self,
        backbone: TextBackbone,
        kind: ExpertKind,
        members: Sequence[Member],
        recipe: Recipe,
        engine: EngineSettings,
        seat: Seat | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        self.members, self.recipe, self.engine_settings = members, recipe, engine
        self.seat = seat or Alone()
        self.checkpoint_every = checkpoint_every
        self.bank = Bank(kind, [member.start for member in members]).to(backbone.device)
        self.model = PackedModel(backbone, self.bank, members[0].train.first)
        self.candidates, self.real = stack_candidates([member.train for member in members])
        self.orders = [member.train.order(member.name, recipe.steps, recipe.batch_size) for member in members]
        self.losses = torch.full((recipe.steps, len(members)), math.nan)
        self.validations: dict[int, list[tuple[float, float]]] = {}  # step: each expert's loss and accuracy
        self.best: list[tuple[int, Expert]] = [(-1, member.start) for member in members]
        self.bank_start = [member.start for member in members]

    def run(self) -> list[Trained]:
        """Train the pack and return each expert's outcome, in the members' order. Every worker calls."""
        with Engine(self.model, self.engine_settings, experts=len(self.members)) as engine:
            for step in range(self._resumed(engine), self.recipe.steps):
                self._step(engine, step)
                if self.recipe.validates(step):
                    self._validate(engine, step)
                self.seat.progress(step + 1, self.recipe.steps)
                if self.checkpoint_every and (step + 1) % self.checkpoint_every == 0 and step + 1 < self.recipe.steps:
                    self.seat.checkpoint(lambda folder, done=step + 1: self._save(engine, folder, done), step + 1)  # type: ignore[misc]
            losses = engine.mean_over_workers(self.losses)
        return [self._outcome(index, losses[:, index]) for index in range(len(self.members))]

    def _step(self, engine: Engine, step: int) -> None:
        """Take one optimizer step: this worker's share of every expert's rows, in as many parts as accumulate."""
        engine.set_learning_rate(self.recipe.rate(step))
        accumulation = self.engine_settings.gradient_accumulation
        mine = [order[step][self.seat.rank :: self.seat.world_size] for order in self.orders]
        total = torch.zeros(len(self.members))
        for part in range(accumulation):
            chosen = [rows[part::accumulation].tolist() for rows in mine]
            losses = self._losses(engine, chosen)
            engine.backward(losses)
            engine.step()
            total += losses.detach().cpu() / accumulation
        self.losses[step] = total

    def _losses(self, engine: Engine, chosen: list[list[int]]) -> Tensor:
        """Return each expert's mean loss (E,) over its chosen rows."""
        inputs = collate([(member.train, rows) for member, rows in zip(self.members, chosen, strict=True)])
        labels = torch.stack([member.train.labels[rows] for member, rows in zip(self.members, chosen, strict=True)])
        return group_losses(engine(inputs, self.candidates, self.real), labels.to(inputs.ids.device))

    @torch.no_grad()
    def _validate(self, engine: Engine, step: int) -> None:
        """Score every expert on its own validation rows and keep those that are the choice so far."""
        most = max(len(member.validation) for member in self.members)
        rows = 64
        sums = torch.zeros(len(self.members), 2)
        for start in range(0, most, rows):
            chosen, counts = zip(*(_window(len(member.validation), start, rows) for member in self.members), strict=True)
            width = max(counts)
            padded = [(c + [0] * width)[:width] for c in chosen]
            parts = [(member.validation, part) for member, part in zip(self.members, padded, strict=True)]
            logits = engine(collate(parts), self.candidates, self.real).cpu()  # (E, rows, most labels)
            for index, (source, part) in enumerate(parts):
                labels = source.labels[part[: counts[index]]]
                own = logits[index, : counts[index]]
                sums[index, 0] += nn.functional.cross_entropy(own, labels, reduction="sum")
                sums[index, 1] += (own.argmax(-1) == labels).sum()
        sizes = torch.tensor([len(member.validation) for member in self.members])
        scores = sums / sizes.unsqueeze(1)
        self.validations[step] = [(float(loss), float(accuracy)) for loss, accuracy in scores]
        self._choose(engine, step)

    def _choose(self, engine: Engine, step: int) -> None:
        last = step + 1 == self.recipe.steps
        better = []
        for index, (chosen, _) in enumerate(self.best):
            now = self.validations[step][index][0]
            before = self.validations[chosen][index][0] if chosen >= 0 else math.inf
            better.append(last if self.recipe.select == "last" else now < before)
        if any(better):
            whole = _bank_tensors(engine)
            for index, is_better in enumerate(better):
                if is_better:
                    self.best[index] = step, self._expert(whole, index)

    def _expert(self, whole: dict[str, Tensor], index: int) -> Expert:
        """Cut one expert out of the gathered bank."""
        return {
            site: {
                key: whole[f"{name}.held.{key.replace('.', '|')}"][index].cpu().clone()
                for key in self.bank_start[index][site]
            }
            for site, name in ((site, site.replace(".", "|")) for site in self.bank_start[index])
        }

    def _outcome(self, index: int, losses: Tensor) -> Trained:
        broken = (~losses.isfinite()).nonzero().flatten().tolist()
        name = self.members[index].name
        error = f"expert {name}: the loss is {float(losses[broken[0]])} at step {broken[0] + 1}; lower training.*.learning_rate" if broken else None
        step, expert = self.best[index]
        curve = [
            {"step": number + 1, "loss": float(loss), "validation": self.validations[number][index][0] if number in self.validations else math.nan}
            for number, loss in enumerate(losses)
        ]
        loss, accuracy = self.validations[step][index] if step >= 0 else (math.nan, math.nan)
        return Trained(expert, curve, {"loss": loss, "accuracy": accuracy}, step + 1, error)

    # --- resuming ----------------------------------------------------------------------------------------------

    def _save(self, engine: Engine, folder: Path, step: int) -> None:
        engine.save(folder)
        if self.seat.rank == 0:
            flat = {
                f"{index}/{site}/{key}": tensor
                for index, (_, expert) in enumerate(self.best)
                for site, held in expert.items()
                for key, tensor in held.items()
            }
            save_file(flat, folder / BEST)
        state = {
            "step": step,
            "losses": self.losses.tolist(),
            "validations": self.validations,
            "best": [chosen for chosen, _ in self.best],
        }
        (folder / f"{self.seat.rank}-{LOOP_STATE}").write_text(json.dumps(state))

    def _resumed(self, engine: Engine) -> int:
        """Take up the last checkpoint, if there is one, and return the step to go on with."""
        folder = self.seat.resume()
        if folder is None:
            return 0
        engine.load(folder)
        state = json.loads((folder / f"{self.seat.rank}-{LOOP_STATE}").read_text())
        self.losses = torch.tensor(state["losses"])
        self.validations = {int(step): [tuple(pair) for pair in pairs] for step, pairs in state["validations"].items()}
        flat = load_file(folder / BEST)
        for index, chosen in enumerate(state["best"]):
            expert: Expert = {}
            for name, tensor in flat.items():
                number, site, key = name.split("/")
                if int(number) == index:
                    expert.setdefault(site, {})[key] = tensor
            self.best[index] = chosen, expert
        return int(state["step"])


def _bank_tensors(engine: Engine) -> dict[str, Tensor]:
    """Return the gathered bank's tensors by their names inside the bank's sites."""
    return {name.removeprefix("bank.sites."): tensor for name, tensor in engine.gathered().items()}


def _window(length: int, start: int, rows: int) -> tuple[list[int], int]:
    """Return the rows of a window that exist, and how many they are."""
    chosen = list(range(start, min(start + rows, length)))
    return chosen, len(chosen)

