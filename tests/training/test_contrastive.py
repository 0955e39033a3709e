"""How retrieval is judged, against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pitune.training.contrastive import recalls


def test_recalls_are_what_a_loop_says() -> None:
    logits = torch.tensor(np.random.default_rng(0).integers(0, 6, (40, 12)), dtype=torch.float32)
    right = torch.tensor(np.random.default_rng(1).integers(0, 12, 40))
    found = recalls(logits, right)
    for most in (1, 5, 10):
        hits = 0
        for row, index in zip(logits.tolist(), right.tolist(), strict=True):
            before = sum(value > row[index] for value in row)
            ties = sum(value == row[index] for value in row) - 1
            hits += before + ties / 2 < most
        assert found[f"recall@{most}"] == pytest.approx(hits / 40)
