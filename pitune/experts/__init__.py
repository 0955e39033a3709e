"""Experts: the bank with the expert axis, the kinds, and reading and writing them in PEFT's format."""

from typing import get_args

from pitune.experts.adapter import Adapter
from pitune.experts.bank import Bank
from pitune.experts.kind import Expert, ExpertKind
from pitune.experts.lora import Lora

AnyKind = Lora | Adapter
"""Every expert kind; a new one is added here, and nowhere else."""
KINDS: tuple[type[ExpertKind], ...] = get_args(AnyKind)

__all__ = ["KINDS", "Adapter", "AnyKind", "Bank", "Expert", "ExpertKind", "Lora"]
