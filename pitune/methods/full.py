"""An expert of all the data: the ceiling."""

from pitune.methods.base import Method


class Full(Method):
    """An expert of all the data: the ceiling."""

    name = "full"
    title = "full data"
    note = "an expert trained on all the task's training data: the ceiling"
    sees = "all"
