"""What the families whose models come from Hugging Face share: padded token ids, and the error for what is no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pitune.backbones.base import BackboneSettings, Encoded
from pitune.errors import PituneError, reason


def padded(rows: Sequence[Encoded], pad: int | None) -> dict[str, Tensor]:
    """Pad rows of token ids to the longest: ``input_ids`` and ``attention_mask``, (rows, tokens)."""
    longest = max(row.cost for row in rows)
    ids = torch.full((len(rows), longest), pad or 0)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : row.cost] = torch.tensor(row.content)
        mask[index, : row.cost] = 1
    return {"input_ids": ids, "attention_mask": mask}


def refused(settings: BackboneSettings, why: str, error: Exception) -> PituneError:
    """Return the error for a folder that a family cannot read."""
    return PituneError(f"backbone.uri: {settings.uri} {why} ({reason(error)})")
