"""Experts: the bank with the expert axis, the kinds, and reading and writing them in PEFT's format."""

from pitune.experts.adapter import Adapter
from pitune.experts.bank import Bank
from pitune.experts.bitfit import BitFit
from pitune.experts.conditional_prompt import ConditionalPrompt
from pitune.experts.kind import Expert, ExpertKind
from pitune.experts.lora import Lora
from pitune.experts.prefix import Prefix
from pitune.experts.text_prompt import TextPrompt
from pitune.experts.unified_prompt import UnifiedPrompt
from pitune.experts.visual_prompt import VisualPrompt
from pitune.experts.whole import Whole

KINDS: tuple[type[ExpertKind], ...] = (
    Lora,
    Adapter,
    Prefix,
    BitFit,
    TextPrompt,
    ConditionalPrompt,
    VisualPrompt,
    UnifiedPrompt,
)
"""Every expert kind; a new one is added here, and nowhere else. The first is the default."""

__all__ = [
    "KINDS",
    "Adapter",
    "Bank",
    "BitFit",
    "ConditionalPrompt",
    "Expert",
    "ExpertKind",
    "Lora",
    "Prefix",
    "TextPrompt",
    "UnifiedPrompt",
    "VisualPrompt",
    "Whole",
]
