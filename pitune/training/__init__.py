"""Packed training of experts; the only place that knows DeepSpeed is :mod:`pitune.training.engine`."""
