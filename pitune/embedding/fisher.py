"""The task embedding: exact diagonal Fisher information of an expert's parameters over a slice.

One expert is expanded along the batch, a copy for each row. The gradient of a copy is then the gradient of that row
alone, so that one backward pass gives per-example gradients; they are squared and summed. Where rows share a
computation that the expert acts in (live candidates), copies would run it once for each row: there one shared pass is
followed by a batch of vector-Jacobian products. Squaring the gradient of a batch, as the published code does, gives
something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pitune.backbones import Backbone
from pitune.embedding.spaces import LABELS, Labels
from pitune.experts import Bank, Expert, ExpertKind
from pitune.objectives import Objective, Rows


def fisher(
    backbone: Backbone,
    kind: ExpertKind,
    objective: Objective,
    expert: Expert,
    rows: Rows,
    *,
    labels: Labels = "empirical",
    name: str = "",
    batch: int = 32,
) -> Expert:
    """Return E[(∂ log p(y | x) / ∂θ)²] for every parameter θ of the expert, with its shapes, float32.

    Args:
        backbone: what the expert acts on.
        kind: the expert's kind.
        objective: gives −log p.
        expert: its parameters.
        rows: the examples; the mean is over all of them.
        labels: which y; see :data:`Labels`.
        name: seeds the drawing of labels: the same name draws the same ones.
        batch: rows per backward pass; changes speed and memory, not the result.
    """
    return fishers(backbone, kind, objective, expert, rows, (labels,), name=name, batch=batch)[0]


def fishers(
    backbone: Backbone,
    kind: ExpertKind,
    objective: Objective,
    expert: Expert,
    rows: Rows,
    labels: Sequence[Labels],
    *,
    name: str = "",
    batch: int = 32,
) -> list[Expert]:
    """Return what :func:`fisher` returns for each of several ``labels``, from one look at every row."""
    firsts = backbone.firsts(list(expert))
    share = objective.shares(backbone, firsts) and not kind.conditional  # which reads no text for all rows
    sums = [
        {
            site: {key: torch.zeros_like(tensor, dtype=torch.float32) for key, tensor in held.items()}
            for site, held in expert.items()
        }
        for _ in labels
    ]
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:15], 16))
    luck = torch.rand(len(rows), generator=generator)  # one number per row, whatever the batches
    order = rows.by_cost()
    bank: Bank | None = None
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        size = 1 if share else len(chosen)  # experts in the bank
        if bank is None or bank.size != size:
            bank = Bank(kind, [expert] * size).to(backbone.device)
        taken = rows.take(chosen)
        groups = [taken] if share else [[row] for row in taken]
        collated = objective.collate(backbone, firsts, groups)
        losses = _losses(backbone, objective, bank, collated, labels, luck[chosen].view(size, -1))
        held = [(site, key, tensor) for site, part in bank.named_sites() for key, tensor in part.tensors().items()]
        for place, one in enumerate(losses):
            again = place + 1 < len(losses)
            found = _gradients(one.flatten(), [tensor for _, _, tensor in held], share, backbone.is_fp16, again)
            for (site, key, _), gradient in zip(held, found, strict=True):  # gradient: (rows, …)
                sums[place][site][key] += gradient.square().sum(0).cpu()
    return [
        {site: {key: total / len(rows) for key, total in held.items()} for site, held in one.items()} for one in sums
    ]


def _losses(
    backbone: Backbone, objective: Objective, bank: Bank, collated: Any, labels: Sequence[Labels], luck: Tensor
) -> list[Tensor]:
    """Return the losses of a batch, (E, rows), for each of ``labels``."""
    if len(set(labels)) > 1:
        found = dict(zip(LABELS, objective.both_losses(backbone, bank, collated, luck), strict=True))
        return [found[which] for which in labels]
    drawn = luck if labels[0] == "true" else None
    return [objective.losses(backbone, bank, collated, drawn)]


def _gradients(losses: Tensor, tensors: list[Tensor], share: bool, is_fp16: bool, again: bool) -> list[Tensor]:
    """Return each row's gradient of its loss (rows,) in each tensor: (rows, …), float32.

    In fp16 by way of the largest power of 4 that does not overflow. ``again``: other losses of the same pass follow.
    """
    if not is_fp16:
        return _per_row(losses, tensors, share, retain=again)
    scale = 4.0**8
    while True:
        found = _per_row(scale * losses, tensors, share, retain=True)
        if scale <= 1 or all(gradient.isfinite().all() for gradient in found):
            return [gradient / scale for gradient in found]
        scale /= 4


def _per_row(losses: Tensor, tensors: list[Tensor], share: bool, retain: bool) -> list[Tensor]:
    """Return per-row gradients: of the rows' own copies, or, where they share one expert, products row by row."""
    if not share:
        return [gradient.float() for gradient in torch.autograd.grad(losses.sum(), tensors, retain_graph=retain)]
    each = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    found = torch.autograd.grad(losses, tensors, each, is_grads_batched=True, retain_graph=retain)
    return [gradient[:, 0].float() for gradient in found]  # (rows, 1, …): the axis of the one expert goes
