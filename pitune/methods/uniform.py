"""The plain average of experts."""

from pitune.methods.base import Method


class Uniform(Method):
    """The plain average of experts."""

    name = "uniform"
    title = "uniform"
    note = "the plain average of the neighbours' experts and the target's own, nothing tuned"
    sees = "shots"
