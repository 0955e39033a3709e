"""What the families whose models come from Hugging Face share: how they are opened, their layers, padded token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pitune.backbones.base import BackboneSettings
from pitune.backbones.tower import Encoded
from pitune.errors import PituneError, reason

LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""Nothing in a model's folder is run, nor is anybody asked whether it may be; and nothing is fetched for it."""
MOST_LAYERS = 1000
"""Transformers makes as many as a configuration says, whatever weights there are."""


def open_model(folder: Path) -> Any:
    """Open a model with transformers: what its folder says and the safetensors weights that lie in it, nothing else.

    Raises:
        ValueError: the folder refers to weights elsewhere, or lacks those of a layer.
        Exception: whatever transformers raises.
    """
    from transformers import AutoConfig, AutoModel  # takes seconds, and few commands need it
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what is wrong is raised here, in a line
    if (folder / "adapter_config.json").exists():
        raise ValueError("adapter_config.json: transformers would open another model, the one that it names")
    for index in folder.glob("*.index.json"):
        for file in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if file != Path(file).name:
                raise ValueError(f"{index.name}: names the weights {file!r:.100}, which are not in the folder")
    config = AutoConfig.from_pretrained(folder, **LOCAL)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        layers = getattr(part, "num_hidden_layers", 0)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise ValueError(f"config.json: num_hidden_layers is {layers}; no more than {MOST_LAYERS} are read")
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    model, told = AutoModel.from_pretrained(folder, **options, **LOCAL)
    missing = sorted(name for name in told["missing_keys"] if re.search(r"\.\d+\.", name))
    if missing:  # transformers would draw them at random
        raise ValueError(f"its weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    return model


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
