"""How much memory a worker needs for a pack: an estimate, made before anything is trained.

What differs from kind to kind and from backbone to backbone is not reckoned but looked up: a row of each task, the
longest, goes through the model once with one expert, and what autograd keeps of it is added up. All else is counting::

    pack   = LIBRARIES + cache + frozen + experts x numbers x each + MARGIN x max(learnt, passing)
    learnt = experts x rows x example + texts x text

=========  =============================================================================================
frozen     the backbone's parameters, in the study's precision; ZeRO-3: see :meth:`PackMemory.of`
numbers    of one expert, float32
each       bytes to a number: :data:`COPY`, and by ZeRO stage :data:`TRAINED`, of which workers share out a part
rows       of an expert that one worker takes at once: ``batch_size`` / workers / ``gradient_accumulation``
example    what the longest example keeps for the backward pass, from the lowest layer with an expert upwards
texts      candidates that experts act on, as many as the objective reads with a graph at once; most often none
text       what the longest of them keeps
passing    where nothing is learnt (trunk, validation), so many rows at once in one layer of the widest tower
=========  =============================================================================================

The device is not asked: the look is on the processor that plans. Attention that never writes its scores down is
assumed where the model has it there (``sdpa``).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pitune.backbones import Backbone, Encoded
from pitune.backbones.base import ROWS_AT_ONCE
from pitune.backbones.cache import CACHE
from pitune.experts import Bank, ExpertKind
from pitune.materials import Materials
from pitune.training.pack import ExpertJob
from pitune.training.settings import TrainingSettings

LIBRARIES = 3 << 28
"""Bytes of a worker before it opens anything: on a processor the libraries' own, on a GPU CUDA's context."""
MARGIN = 1.15
"""What is held for a moment beside what is kept: gradients of a layer's outputs, a batch's input, logits."""
LAYER = 12
"""Widths of a token that a layer holds where nothing is kept: its input, queries, keys and values, and the four-fold
width before and after the activation."""
COPY = 4
"""Bytes to a trained number of the copy that acts in a pass: of some of a pack's experts, in half precision, under
ZeRO-3, of a whole model's change."""
TRAINED = {0: (16, 0), 1: (8, 12), 2: (8, 12), 3: (8, 16)}
"""By ZeRO stage, bytes to a trained number: on every worker, and of all workers together. A float32 weight
and its gradient, two moments of Adam; from stage 1 on DeepSpeed's own copy of the weight, at 3 a part of it besides."""
LIVE = 1_000_000_000
"""Parameters that ZeRO-3 leaves whole once they are gathered (DeepSpeed's ``stage3_max_live_parameters``)."""
LOOKED_AT = 64
"""Examples of a task that are encoded to find the longest, of those that are longest in letters."""


@dataclass(frozen=True)
class Reading:
    """What rows of one task take, in bytes.

    Attributes:
        example: that the longest example keeps for the backward pass.
        text: that the longest candidate's text keeps, where experts act on it; else 0.
        passing: of the longer of the two in one layer of its tower, where nothing is learnt.
        candidates: how many there are.
    """

    example: int
    text: int
    passing: int
    candidates: int


@dataclass(frozen=True)
class Footprint:
    """What is known of experts of one kind without training one.

    Attributes:
        frozen: bytes of the backbone's parameters.
        parameters: how many those are.
        numbers: of one expert.
        readings: by task.
    """

    frozen: int
    parameters: int
    numbers: int
    readings: Mapping[str, Reading]


def footprint(materials: Materials, kind: ExpertKind, tasks: Iterable[str]) -> Footprint:
    """Look at a study's backbone with one expert of ``kind``, and at the longest rows of ``tasks``.

    Raises:
        PituneError: a task or the backbone cannot be had, or the kind finds nothing to act on.
    """
    backbone = materials.backbone
    bank = Bank(kind, [materials.start if kind == materials.kind else kind.start(backbone)]).to(backbone.device)
    parameters = list(backbone.parameters())
    return Footprint(
        sum(one.numel() * one.element_size() for one in parameters),
        sum(one.numel() for one in parameters),
        sum(one.numel() for one in bank.parameters()),
        {name: _reading(materials, bank, name) for name in tasks},
    )


def _reading(materials: Materials, bank: Bank, name: str) -> Reading:
    backbone, objective, task = materials.backbone, materials.objective, materials.task(name)
    dear = heapq.nlargest(LOOKED_AT, task.splits["train"], key=materials.settings.cost)
    example = max(backbone.encode(dear), key=lambda row: row.cost)
    texts = objective.candidates(objective.prepare(backbone, task))
    rows = [example, *([max(texts, key=lambda row: row.cost)] if texts else [])]
    firsts = backbone.firsts([path for path, _ in bank.named_sites()])
    live = len(rows) > 1 and objective.shares(backbone, firsts)
    beside = None
    if live and bank.conditional:
        with torch.no_grad():
            beside = backbone(backbone.inputs([replace(example, again=False)], {}))
    return Reading(
        kept(backbone, bank, example),
        kept(backbone, bank, rows[1], beside) if live else 0,
        max(4 * LAYER * row.cost * backbone.towers[row.tower].width for row in rows),
        len(texts),
    )


def kept(backbone: Backbone, bank: Bank, row: Encoded, beside: Tensor | None = None) -> int:
    """Return how many bytes one more row, like ``row``, keeps for the backward pass.

    Args:
        backbone: who reads it.
        bank: one expert.
        row: what is read; where no expert touches its tower, it keeps nothing.
        beside: of experts that are conditional, the embedding of the example that a text is read beside, (1, width).
    """
    firsts = backbone.firsts([path for path, _ in bank.named_sites()])
    if row.tower not in firsts:
        return 0
    sizes = []
    for count in (1, 2):  # what there is once, whatever the rows, falls out of the difference
        inputs = backbone.inputs([replace(row, again=False)] * count, firsts)
        with bank.attached(backbone.model, beside):
            sizes.append(saved(lambda: backbone(inputs), [*backbone.parameters(), *bank.parameters()]))  # noqa: B023
    return sizes[1] - sizes[0]


def saved(forward: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Run a forward pass and return the bytes that autograd saves of it, each storage once, but for those ``known``."""
    counted = {tensor.untyped_storage().data_ptr() for tensor in known}
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        held = forward()  # as long as it is held, no storage is another's again
    del held
    return sum(sizes.values())


def ran_out(error: BaseException) -> bool:
    """Say whether an error is, or came of, torch's or Python's that no memory is left, on a GPU or a processor."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@dataclass(frozen=True)
class PackMemory:
    """How much memory a worker needs for packs of a study.

    Args:
        footprints: by the kind of the experts.
        materials: of the study.
        training: ZeRO stage and accumulation.
        workers: of a gang.
    """

    footprints: Mapping[ExpertKind, Footprint]
    materials: Materials
    training: TrainingSettings
    workers: int

    def rows(self, job: ExpertJob) -> int:
        """Return how many rows of an expert a worker takes at once."""
        return math.ceil(job.recipe.batch_size / self.workers / self.training.gradient_accumulation)

    def of(self, jobs: Sequence[ExpertJob]) -> int:
        """Return about how many bytes a worker needs to train jobs as one pack.

        ZeRO-3 shares out the backbone, too, but leaves up to :data:`LIVE` parameters whole once they are gathered, and
        between packs all of them are: it saves nothing of a smaller backbone, and a larger one has to fit, too.
        """
        found = self.footprints[jobs[0].kind or self.materials.kind]
        stage = self.training.zero_stage
        frozen: float = found.frozen
        if stage == 3:
            frozen = max(frozen, frozen / self.workers + frozen * min(1.0, LIVE / found.parameters))
        held, shared = TRAINED[stage]
        trained = len(jobs) * found.numbers * (COPY + held + shared / self.workers)
        return round(LIBRARIES + CACHE.most + frozen + trained + MARGIN * self._activations(jobs, found))

    def _activations(self, jobs: Sequence[ExpertJob], found: Footprint) -> int:
        """Return the bytes of the larger of two passes: the one that is learnt from, or one where nothing is."""
        at_once = ROWS_AT_ONCE["cuda" if self.materials.gpu else "cpu"]
        rows = max(map(self.rows, jobs))
        tasks = [{chosen.task: found.readings[chosen.task] for chosen, _ in job.data} for job in jobs]
        readings = [reading for held in tasks for reading in held.values()]
        candidates = max(sum(reading.candidates for reading in held.values()) for held in tasks)
        conditional = (jobs[0].kind or self.materials.kind).conditional
        texts = self.materials.objective.texts_at_once(len(jobs), rows, candidates, at_once, conditional)
        learnt = len(jobs) * rows * max(one.example for one in readings) + texts * max(one.text for one in readings)
        return max(learnt, at_once * max(one.passing for one in readings))
