"""What the families whose models come from Hugging Face share: their layers, padded token ids, what is no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pitune.backbones.base import BackboneSettings
from pitune.backbones.tower import Encoded
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


def largest_stack(model: nn.Module, uri: str) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of modules of ``model`` that holds most parameters: an encoder's layers."""
    stacks = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and module]
    if not stacks:
        raise PituneError(f"backbone.uri: {uri} has no stack of layers; name a transformer encoder")
    return max(stacks, key=lambda pair: sum(parameter.numel() for parameter in pair[1].parameters()))
