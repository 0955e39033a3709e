"""One expert, trained on the target's shots."""

from pitune.methods.base import Method


class Single(Method):
    """One expert, trained on the target's shots."""

    name = "single"
    title = "single"
    note = "one expert, trained on the target's few shots"
    sees = "shots"
