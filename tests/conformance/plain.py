"""The reference: one expert on a model of its own, one row at a time, nothing padded, nothing kept, torch's autograd.

Kinds that :class:`tinymodel.PlainExpert` knows act by formulas written out there, and ``match`` is written out
here. What has no formula is compared with itself, alone: a bank of one expert, a batch of one row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tinymodel import PlainExpert, flat
from torch import Tensor, nn

from pitune.backbones import Backbone, Encoded, Inputs
from pitune.experts import Bank, Expert, ExpertKind
from pitune.experts.bank import attach
from pitune.objectives import Objective, Row
from pitune.tasks.task import Example, Task

KNOWN = ("lora", "adapter", "prefix", "bitfit")  # to PlainExpert


class Plain:
    """One expert."""

    def __init__(self, backbone: Backbone, kind: ExpertKind, expert: Expert) -> None:
        self.kind, self.expert, self.bare = kind, expert, copy.deepcopy(backbone)
        self.live = copy.deepcopy(backbone)
        self.bank = Bank(kind, [expert])
        self.parameters: dict[str, dict[str, Tensor]] = {p: dict(site.tensors()) for p, site in self.bank.named_sites()}
        if kind.kind in KNOWN:
            plain = PlainExpert(kind, expert)
            plain.put_on(self.live.model)
            self.parameters = {path: dict(held) for path, held in plain.sites.items()}
        else:
            attach(kind, self.live.model, dict(self.bank.named_sites()))

    def vector(self, row: Encoded, acting: bool) -> Tensor:
        """Embed one input, with the expert or without: (width,), of length 1."""
        backbone = self.live if acting else self.bare
        found = backbone.embed(Inputs(row.tower, backbone.collate([row])))[0]
        return found / found.square().sum().sqrt()

    def loss(self, objective: Objective, task: Task, example: Example) -> Tensor:
        """Return the loss of one example."""
        if objective.kind == "match":
            return self._match(objective.scale, task, example)
        firsts = self.bare.firsts(list(self.expert))
        row = Row(objective.prepare(self.bare, task), self.bare.encode([example])[0], objective.target(task, example))
        self.parameters = {path: dict(site.tensors()) for path, site in self.bank.named_sites()}
        return objective.losses(self.bare, self.bank, objective.collate(self.bare, firsts, [[row]]))[0, 0]

    def _match(self, scale: float, task: Task, example: Example) -> Tensor:
        apart = self.bare.texts_tower != self.bare.examples_tower  # else candidates are what the backbone alone says
        found = self.vector(self.bare.encode([example])[0], True)  # first: a text may be read beside it
        texts = torch.stack([self.vector(text, apart) for text in self.bare.encode_texts(task.label_texts)])
        scores = scale * texts @ found
        if isinstance(example.label, int):
            return scores.exp().sum().log() - scores[example.label]
        signs = [1 if place in example.label else -1 for place in range(len(scores))]
        return sum((1 + (-sign * score).exp()).log() for sign, score in zip(signs, scores, strict=True)) / len(scores)

    def gradient(self, loss: Tensor) -> Expert:
        """Return a loss's gradient in the expert."""
        names = [(path, name) for path, held in self.parameters.items() for name in held]
        found = torch.autograd.grad(loss, [self.parameters[p][n] for p, n in names], allow_unused=True)
        expert: Expert = {path: {} for path in self.expert}
        for (path, name), gradient in zip(names, found, strict=True):
            shape = self.expert[path][name].shape
            expert[path][name] = torch.zeros(shape) if gradient is None else gradient.reshape(shape)
        return expert


def losses(plains: Sequence[Plain], objective: Objective, tasks: Sequence[Task]) -> Tensor:
    """Return the losses of each expert on the first and the fourth test example of its task: (E, 2)."""
    chosen = [[task.splits["test"][0], task.splits["test"][3]] for task in tasks]
    return torch.stack(
        [
            torch.stack([plain.loss(objective, task, example) for example in examples])
            for plain, task, examples in zip(plains, tasks, chosen, strict=True)
        ]
    )


def mixed(kind: ExpertKind, experts: Sequence[Expert], weights: Sequence[float], model: nn.Module) -> Expert | None:
    """Return the average of experts; of LoRAs, put Σ wᵢ · alpha / rank · Bᵢ Aᵢ into the weights and return None."""
    if kind.kind != "lora":
        return {
            path: {
                name: sum(weight * expert[path][name] for weight, expert in zip(weights, experts, strict=True))
                for name in held
            }
            for path, held in experts[0].items()
        }
    for path in experts[0]:
        for weight, expert in zip(weights, experts, strict=True):
            a, b = expert[path]["lora_A.weight"], expert[path]["lora_B.weight"]
            model.get_submodule(path).weight.data += weight * kind.alpha / kind.rank * b @ a
    return None


def assert_near(found: Expert, expected: Expert, tolerance: float = 1e-4) -> None:
    """Compare two experts' numbers, against the largest of them."""
    assert {path: sorted(held) for path, held in found.items()} == {
        path: sorted(held) for path, held in expected.items()
    }
    one, other = flat(found), flat(expected)
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())
    assert float(other.abs().max()) > 0
