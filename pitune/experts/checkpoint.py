"""Experts as files: PEFT's ``adapter_config.json`` and ``adapter_model.safetensors``, for kinds PEFT lacks too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from pitune.errors import PituneError, reason
from pitune.experts import KINDS, Bank, Expert, ExpertKind, Whole
from pitune.experts.bank import attach
from pitune.experts.kind import Files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
READABLE: tuple[type[ExpertKind], ...] = (*KINDS, Whole)
PEFT_TYPES = {name: kind for kind in READABLE for name in (kind.peft_type, *kind.other_peft_types)}


def to_files(kind: ExpertKind, expert: Expert, backbone: str) -> dict[str, bytes]:
    """Return the two files of an expert by name.

    Args:
        kind: its kind.
        expert: its parameters.
        backbone: what ``base_model_name_or_path`` says: where the backbone came from.
    """
    config = {
        "base_model_name_or_path": backbone,
        "task_type": None,
        "inference_mode": True,
        **kind.peft_config(expert),
    }
    return {
        CONFIG: (json.dumps(config, indent=1, sort_keys=True) + "\n").encode(),
        WEIGHTS: save_safetensors(kind.to_tensors(expert), metadata=kind.notes(expert)),
    }


def from_files(config: bytes, weights: bytes, where: str) -> tuple[ExpertKind, Expert]:
    """Read an expert from its two files' contents; ``where`` names them in errors.

    Raises:
        PituneError: the files are damaged, or of a kind that pitune does not know.
    """
    try:
        settings: dict[str, Any] = dict(json.loads(config))
        tensors = load_safetensors(weights)
    except (ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise PituneError(f"{where}: cannot be read as an expert ({reason(error)})") from error
    kind = _kind(settings, f"{where}/{CONFIG}")
    head = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    files = Files(settings, tensors, head.get("__metadata__") or {}, f"{where}/{WEIGHTS}")
    try:
        return kind, kind.from_tensors(files)
    except KeyError as error:
        raise PituneError(f"{where}/{CONFIG}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise PituneError(f"{where}: {CONFIG} and {WEIGHTS} do not go together ({error})") from error


def _kind(settings: dict[str, Any], where: str) -> ExpertKind:
    """Return the kind that an ``adapter_config.json`` describes; ``where`` names it in errors."""
    peft_type = settings.get("peft_type")
    if peft_type not in PEFT_TYPES:
        raise PituneError(f"{where}: peft_type is {peft_type!r}; pitune reads {', '.join(PEFT_TYPES)}")
    try:
        return PEFT_TYPES[peft_type].from_peft_config(settings)
    except KeyError as error:
        raise PituneError(f"{where}: {error.args[0]} is missing") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise PituneError(f"{where}: found {problem['input']!r}; {problem['msg']}") from error
    except (TypeError, ValueError) as error:
        raise PituneError(f"{where}: {error}") from error


def read(folder: str | Path) -> tuple[ExpertKind, Expert]:
    """Read an expert from a local folder.

    Raises:
        PituneError: a file is missing or damaged.
    """
    try:
        return from_files(Path(folder, CONFIG).read_bytes(), Path(folder, WEIGHTS).read_bytes(), str(folder))
    except OSError as error:
        raise PituneError(f"{folder}: is not an expert's folder ({error.strerror}: {error.filename})") from error


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Attach the expert in ``path`` to a plain Hugging Face model, for inference.

    Works for every kind, merged experts included. The expert becomes part of ``model`` (as ``model.expert``, in the
    model's type and on its device) and takes part in every later forward pass.

    Args:
        model: the same backbone that the expert was trained on, from ``AutoModel.from_pretrained``.
        path: the expert's folder, such as ``STUDY/interpolations/movie@16#0``.

    Returns:
        The same model.

    Raises:
        PituneError: the folder is no expert, the expert does not fit the model, or the model has one already.
    """
    kind, expert = read(path)
    if hasattr(model, "expert"):
        raise PituneError(f"{path}: this model has an expert already; open the backbone anew")
    expert = _fitted(kind, expert, model, str(path))
    bank = Bank(kind, [expert]).requires_grad_(False)
    place = next(model.parameters())
    attach(kind, model, dict(bank.to(place.device, place.dtype).named_sites()))
    model.add_module("expert", bank)
    return model


def _fitted(kind: ExpertKind, expert: Expert, model: nn.Module, where: str) -> Expert:
    """Return ``expert`` by the paths of ``model``; raise where that lacks a site, or has it in another size."""
    try:
        expert = kind.placed(expert, model)
    except PituneError as error:
        raise PituneError(f"{where}: {error}") from error
    modules = dict(model.named_modules())
    for path, held in expert.items():
        try:
            fitting = kind.initial(modules[path], torch.Generator())
        except (KeyError, AttributeError, PituneError):
            raise PituneError(
                f"{where}: made for another backbone, this model has no module {path} that {kind.kind} acts on"
            ) from None
        for name, right in fitting.items():
            if held[name].shape != right.shape:
                found, fits = tuple(held[name].shape), tuple(right.shape)
                raise PituneError(
                    f"{where}: made for another backbone, {path} has {name} {found}, this model needs {fits}"
                )
    return expert
