"""Interpolation with learned weights (pi-Tuning, arXiv 2304.14381)."""

from pitune.methods.base import Method


class Pi(Method):
    """Interpolation with learned weights (pi-Tuning, arXiv 2304.14381)."""

    name = "pi"
    title = "pi"
    note = "the neighbours' experts and the own one, mixed with learned weights and tuned on the shots (pi-Tuning)"
    sees = "shots"
