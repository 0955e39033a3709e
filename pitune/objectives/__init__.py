"""Objectives: how a backbone's outputs become a loss and an answer, one file each."""

from pitune.objectives.base import NOBODY, Acting, Answers, Objective, Row
from pitune.objectives.match import Match
from pitune.objectives.rows import Rows, right

OBJECTIVES: tuple[type[Objective], ...] = (Match,)
"""Every objective; a new one is added here, and nowhere else. The first is the default."""

__all__ = ["NOBODY", "OBJECTIVES", "Acting", "Answers", "Match", "Objective", "Row", "Rows", "right"]
