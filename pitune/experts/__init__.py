"""Experts: the bank with the expert axis, the kinds, and reading and writing them in PEFT's format."""

from pitune.experts.adapter import Adapter
from pitune.experts.bank import Bank
from pitune.experts.kind import Expert, ExpertKind
from pitune.experts.lora import Lora

KINDS: tuple[type[ExpertKind], ...] = (Lora, Adapter)
"""Every expert kind; a new one is added here."""

__all__ = ["KINDS", "Adapter", "Bank", "Expert", "ExpertKind", "Lora"]
