"""LoRA (arXiv 2106.09685) with the expert axis: y + alpha / rank · (x Aᵀ) Bᵀ, an A and a B for each group of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pitune.experts.kind import Expert, ExpertKind, Tensors

# What other encoders call their query and value projections (ModernBERT has query, key and value in one).
ALIASES = {
    "query": ("query", "query_proj", "q_proj", "q_lin", "attn.q", "Wqkv"),
    "value": ("value", "value_proj", "v_proj", "v_lin", "attn.v", "Wqkv"),
}
# Settings of PEFT's under which a LoRA computes something else.
UNREAD = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias", "modules_to_save")

A, B = "lora_A.weight", "lora_B.weight"  # (E, rank, width), (E, output width, rank): PEFT's names and layout
DELTA = "delta"  # of a task vector: (output width, width)


class Lora(ExpertKind):
    """Low-rank updates of linear modules."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(
        ("query", "value"), min_length=1, description="ends of the modules' paths, in BERT's words"
    )
    peft_type: ClassVar[str] = "LORA"
    parameter_names: ClassVar[tuple[str, ...]] = (A, B)

    def is_site(self, path: str, module: nn.Module) -> bool:
        """Say whether ``module`` is linear and ``path`` ends in one of the targets."""
        ends = [end for target in self.targets for end in ALIASES.get(target, (target,))]
        return isinstance(module, nn.Linear) and any(f".{path}".endswith("." + end) for end in ends)

    def initial(self, module: nn.Linear, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw A as PEFT does (Kaiming uniform, a = √5: within 1 / √width), B zero."""
        bound = 1 / math.sqrt(module.in_features)
        a = torch.empty(self.rank, module.in_features).uniform_(-bound, bound, generator=generator)
        return {A: a, B: torch.zeros(module.out_features, self.rank)}

    def apply(self, tensors: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Add the low-rank update to ``y``."""
        a, b = tensors[A].to(x.dtype), tensors[B].to(x.dtype)
        groups = x.reshape(len(a), -1, x.shape[-1])  # (E, rows · tokens, width)
        inner = torch.bmm(groups, a.transpose(1, 2))  # (E, rows · tokens, rank)
        update = torch.bmm(inner, b.transpose(1, 2))  # (E, rows · tokens, output width)
        return torch.add(y, update.view_as(y), alpha=self.alpha / self.rank)

    def mix(self, tensors: Tensors, weights: Tensor) -> dict[str, Tensor]:
        """Mix in delta space, exactly: Σ wᵢ Bᵢ Aᵢ = [w₁B₁ … wₙBₙ] [A₁; …; Aₙ], one LoRA of rank E · rank."""
        a, b = tensors[A], tensors[B] * weights.view(-1, 1, 1)
        return {A: a.reshape(1, -1, a.shape[-1]), B: b.permute(1, 0, 2).reshape(1, b.shape[1], -1)}

    def align(self, expert: Tensors, others: list[Tensors]) -> dict[str, Tensor]:
        """Pad with zero ranks up to the largest rank among ``others``."""
        missing = max(len(other[A]) for other in others) - len(expert[A])
        return {A: nn.functional.pad(expert[A], (0, 0, 0, missing)), B: nn.functional.pad(expert[B], (0, missing))}

    def delta(self, tensors: Tensors) -> Tensor:
        """Return the update of the weight, alpha / rank · B A, (…, output width, width)."""
        return tensors[B] @ tensors[A] * (self.alpha / self.rank)

    def vector(self, tensors: Tensors, start: Tensors) -> dict[str, Tensor]:
        """Return what has moved in delta space: the update of the weight, whatever A and B it is made of."""
        return {DELTA: self.delta(tensors) - self.delta(start)}

    def from_vector(self, vector: Tensors, start: Tensors, rank: int) -> dict[str, Tensor]:
        """Return the LoRA of ``rank`` that comes closest to the update in the Frobenius norm.

        Of Δ = U S Vᵀ it is (U, Uᵀ Δ) or (Δ V, Vᵀ), whichever needs the smaller eigenproblem: U and V are eigenvectors
        of Δ Δᵀ and Δᵀ Δ. In float64 that loses nothing which float32 has, and costs a fraction of the decomposition.
        """
        delta = (vector[DELTA] + self.delta(start)).double() / (self.alpha / self.rank)
        tall = delta.shape[0] > delta.shape[1]
        axes = torch.linalg.eigh(delta.T @ delta if tall else delta @ delta.T).eigenvectors.flip(1)[:, :rank]
        a, b = (axes.T, delta @ axes) if tall else (axes.T @ delta, axes)
        missing = rank - axes.shape[1]  # ranks beyond the widths do nothing; all sites of a LoRA have as many
        dtype = vector[DELTA].dtype
        return {A: nn.functional.pad(a, (0, 0, 0, missing)).to(dtype), B: nn.functional.pad(b, (0, missing)).to(dtype)}

    def summed(self, tensors: Tensors, start: Tensors, weights: Tensor) -> dict[str, Tensor]:
        """Add up the updates as :meth:`mix` does: a LoRA of rank E · rank.

        What the start itself adds, which is nothing at the common start of a study, takes the remaining weight.
        """
        mixed = self.mix(tensors, weights)
        if not start[B].any():
            return mixed
        rest = (1 - weights.sum()) * start[B]
        return {
            A: torch.cat([mixed[A], start[A].unsqueeze(0)], 1),
            B: torch.cat([mixed[B], rest.unsqueeze(0)], 2),
        }

    def randomized(self, tensors: Tensors, start: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
        """Return a random LoRA: A has moved as far as in ``tensors``, and the update is as large as theirs."""
        found = super().randomized(tensors, start, generator)
        whole, drawn = self.delta(tensors).norm(), self.delta(found).norm()
        return {A: found[A], B: found[B] * (whole / drawn)} if drawn else found

    def peft_config(self, expert: Expert) -> dict[str, Any]:
        """Return PEFT's LoraConfig fields; a merged expert's larger rank keeps the scaling alpha / rank."""
        rank = len(next(iter(expert.values()))[A])
        return {
            "peft_type": self.peft_type,
            "r": rank,
            "lora_alpha": self.alpha * rank / self.rank,
            "target_modules": sorted(expert),
            "lora_dropout": 0.0,
            "bias": "none",
            "init_lora_weights": True,
        }

    @classmethod
    def from_peft_config(cls, config: Mapping[str, Any]) -> Lora:
        """Return the kind of a saved LoRA, whatever wrote it.

        Raises:
            ValueError: it is a variant of LoRA that pitune does not compute.
        """
        for name in UNREAD:
            if config.get(name):
                raise ValueError(f"{name} is {json.dumps(config[name])}; pitune reads plain LoRA, without it")
        targets = config["target_modules"]
        return cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=(targets,) if isinstance(targets, str) else tuple(targets),
        )


def truncate(expert: Expert, rank: int) -> tuple[Expert, float]:
    """Cut a LoRA to ``rank`` by singular values, the best there is in the Frobenius norm.

    Returns:
        The smaller expert, and the error ‖Δ − Δ'‖ / ‖Δ‖ over all sites together.
    """
    small: Expert = {}
    lost = whole = 0.0
    for site, tensors in expert.items():
        # SVD of B A through the two thin QR factors: never forms the (output width, width) matrix.
        q_b, r_b = torch.linalg.qr(tensors[B].double())
        q_a, r_a = torch.linalg.qr(tensors[A].double().T)
        u, s, v = torch.linalg.svd(r_b @ r_a.T)
        root = s[:rank].sqrt()
        small[site] = {
            A: ((q_a @ v[:rank].T) * root).T.float().contiguous(),
            B: ((q_b @ u[:, :rank]) * root).float().contiguous(),
        }
        lost += float((s[rank:] ** 2).sum())
        whole += float((s**2).sum())
    return small, math.sqrt(lost / whole) if whole else 0.0
