"""The frozen backbone alone."""

from pitune.methods.base import Method


class ZeroShot(Method):
    """The frozen backbone alone."""

    name = "zero_shot"
    title = "zero-shot"
    note = "the frozen backbone alone"
    sees = "nothing"
