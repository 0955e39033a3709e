"""The plan: every artifact of a study as a node of one graph, and what of it is there."""

from pitune.plan.builder import Builder, Waits
from pitune.plan.comparing import GRAPH
from pitune.plan.node import Item, Lane, Node, State
from pitune.plan.plan import Plan, materials_of

__all__ = ["GRAPH", "Builder", "Item", "Lane", "Node", "Plan", "State", "Waits", "materials_of"]
