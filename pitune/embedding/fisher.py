"""The task embedding: exact diagonal Fisher information of an expert's parameters over a slice.

One expert is expanded along the batch, a copy for each row. The gradient of a copy is then the gradient of that row
alone, so that one backward pass gives per-example gradients; they are squared and summed. Squaring the gradient of a
batch, as the published code does, gives something else.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from pitune.embedding.settings import Labels
from pitune.experts import Bank, Expert, ExpertKind
from pitune.training.examples import Rows


def fisher(
    kind: ExpertKind,
    expert: Expert,
    rows: Rows,
    *,
    labels: Labels = "empirical",
    name: str = "",
    batch: int = 32,
) -> Expert:
    """Return E[(∂ log p(y | x) / ∂θ)²] for every parameter θ of the expert, with its shapes, float32.

    Args:
        kind: the expert's kind.
        expert: its parameters.
        rows: the examples; the mean is over all of them.
        labels: which y; see :data:`Labels`.
        name: seeds the drawing of labels: the same name draws the same ones.
        batch: rows per backward pass; changes speed and memory, not the result.
    """
    sums = {
        site: {key: torch.zeros_like(tensor, dtype=torch.float32) for key, tensor in held.items()}
        for site, held in expert.items()
    }
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:15], 16))
    luck = torch.rand(len(rows), generator=generator)  # one number per row, whatever the batches
    order = rows.by_length()
    bank: Bank | None = None
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        if bank is None or bank.size != len(chosen):
            bank = Bank(kind, [expert] * len(chosen)).to(rows.backbone.device)
        _add_squares(bank, rows, chosen, luck[chosen] if labels == "true" else None, sums)
    return {site: {key: total / len(rows) for key, total in held.items()} for site, held in sums.items()}


def _add_squares(bank: Bank, rows: Rows, chosen: list[int], luck: Tensor | None, sums: Expert) -> None:
    """Add each row's squared gradients to ``sums``; ``bank`` holds one copy of the expert per row.

    The labels are the data's, or drawn with ``luck`` (rows,).
    """
    inputs = rows.inputs(chosen)
    with bank.attached(rows.backbone.model):
        embeddings = rows.backbone(inputs, rows.first)
    logits = rows.logits(embeddings)
    truth = rows.labels[chosen] if luck is None else _drawn(logits, luck)
    loss = torch.nn.functional.cross_entropy(logits, truth.to(logits.device), reduction="sum")
    held = [(site, key, tensor) for site, part in bank.named_sites() for key, tensor in part.tensors().items()]
    gradients = _gradients(loss, [tensor for _, _, tensor in held], rows.backbone.is_fp16)
    for (site, key, _), gradient in zip(held, gradients, strict=True):  # gradient: (rows, …)
        sums[site][key] += gradient.square().sum(0).cpu()


def _gradients(loss: Tensor, tensors: list[nn.Parameter], is_fp16: bool) -> list[Tensor]:
    """Return the gradients of ``loss``, float32; in fp16 by way of the largest power of 4 that does not overflow."""
    if not is_fp16:
        return [gradient.float() for gradient in torch.autograd.grad(loss, tensors)]
    scale = 4.0**8
    while True:
        found = [gradient.float() for gradient in torch.autograd.grad(scale * loss, tensors, retain_graph=True)]
        if scale <= 1 or all(gradient.isfinite().all() for gradient in found):
            return [gradient / scale for gradient in found]
        scale /= 4


def _drawn(logits: Tensor, luck: Tensor) -> Tensor:
    """Draw a label for each row of ``logits`` (rows, labels) from the model's distribution, by ``luck`` (rows,)."""
    reached = logits.detach().double().softmax(-1).cumsum(-1).cpu()
    return (reached <= luck.double().unsqueeze(1)).sum(-1).clamp(max=logits.shape[-1] - 1)
