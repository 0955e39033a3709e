"""Interpolation of experts with learned weights, merging, and tuning on a target."""
